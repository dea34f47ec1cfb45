"""What a user of LLM and AsyncLLM relies on."""

import asyncio
import math
import os
import subprocess
import sys
import threading

import psutil
import pytest

import fastllm
from fastllm import LLM, AsyncLLM, InvalidRequestError, SamplingParams

SMALL = {"max_model_len": 256, "max_num_seqs": 16, "kv_cache_tokens": 4096}


@pytest.fixture(scope="module")
def llm():
    with LLM(**SMALL) as engine:
        yield engine


def test_text_is_what_the_tokens_say(llm):
    out = llm.generate("The os module", SamplingParams(temperature=0, max_tokens=20))[0]
    assert out.finished and out.outputs[0].finish_reason == "length"
    assert len(out.outputs[0].token_ids) == 20
    assert llm.decode(out.outputs[0].token_ids) == out.outputs[0].text
    assert out.metrics.num_prompt_tokens == len(out.prompt_token_ids) == len(llm.encode("The os module"))


def test_prompts_come_as_text_ids_and_dicts(llm):
    ids = llm.encode("A list is")
    params = SamplingParams(temperature=0, max_tokens=5)
    mixed = llm.generate(["A list is", ids, {"prompt_token_ids": ids}, {"prompt": "A list is"}], params)
    assert len({tuple(o.outputs[0].token_ids) for o in mixed}) == 1
    assert llm.generate(ids, params)[0].outputs[0].token_ids == mixed[0].outputs[0].token_ids


@pytest.mark.parametrize("keeps", [False, True])
def test_stop_string_across_token_borders(llm, keeps):
    free = llm.generate("The os module", SamplingParams(temperature=0, max_tokens=40))[0].outputs[0].text
    stop = free[10:17]
    end = free.index(stop)
    params = SamplingParams(temperature=0, max_tokens=40, stop=stop, include_stop_str_in_output=keeps)
    out = llm.generate("The os module", params)[0].outputs[0]
    assert out.text == free[: end + len(stop) * keeps]
    assert (out.finish_reason, out.stop_reason) == ("stop", stop)
    assert "".join(llm.stream("The os module", params)) == out.text


def test_logprobs_are_log_probabilities(llm):
    out = llm.generate("The os module", SamplingParams(temperature=0, max_tokens=4, logprobs=5))[0].outputs[0]
    for token, entry in zip(out.token_ids, out.logprobs, strict=True):
        assert entry[token].rank == 1
        assert len(entry) == 5
        assert sum(math.exp(lp.logprob) for lp in entry.values()) <= 1 + 1e-6
    assert out.cumulative_logprob == pytest.approx(
        sum(e[t].logprob for t, e in zip(out.token_ids, out.logprobs, strict=True))
    )


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 129}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 21}, "logprobs"),
        ({"stop_token_ids": [4096]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"logit_bias": {2**40: 1.0}}, "logit_bias"),
        ({"allowed_token_ids": [99999]}, "allowed_token_ids"),
        ({"temperature": "hot"}, "temperature"),
        ({"max_tokens": True}, "max_tokens"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name(llm, changes, text):
    with pytest.raises(fastllm.InvalidRequestError, match=text):
        llm.generate("The", SamplingParams(**changes))
    assert llm.generate("The", SamplingParams(max_tokens=1))[0].finished


@pytest.mark.parametrize("prompt", [[], [4096], [-1], [2**40], [0] * 300])
def test_a_wrong_prompt_is_refused(llm, prompt):
    with pytest.raises(fastllm.InvalidRequestError):
        llm.generate([{"prompt_token_ids": prompt}], SamplingParams(max_tokens=1))


def test_an_unknown_parameter_is_refused_with_the_nearest_name():
    with pytest.raises(fastllm.InvalidRequestError, match="temperature"):
        SamplingParams.from_dict({"temprature": 1.0})
    with pytest.raises(TypeError):
        LLM(max_seqs=3)


def test_what_does_not_fit_the_budget_is_refused_with_the_plan():
    with pytest.raises(fastllm.OutOfMemoryError, match=r"weights[\s\S]*KV cache[\s\S]*Raise memory_budget"):
        LLM(memory_budget="9MiB")


def test_bans_and_allowed_ids_hold(llm):
    params = SamplingParams(temperature=1.0, seed=1, max_tokens=30, allowed_token_ids=[300, 301, 302], ignore_eos=True)
    assert set(llm.generate("The", params)[0].outputs[0].token_ids) <= {300, 301, 302}
    greedy = llm.generate("The", SamplingParams(temperature=0, max_tokens=1))[0].outputs[0].token_ids
    other = llm.generate("The", SamplingParams(temperature=0, max_tokens=1, banned_token_ids=greedy))[0]
    assert other.outputs[0].token_ids != greedy


def test_threads_share_one_engine(llm):
    expected = llm.generate("A list is", SamplingParams(temperature=0, max_tokens=16))[0].outputs[0].token_ids
    found = []

    def work():
        for _ in range(5):
            out = llm.generate("A list is", SamplingParams(temperature=0, max_tokens=16))[0]
            found.append(out.outputs[0].token_ids)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 40


def test_async_streams_equal_the_blocking_ones_and_cancel_frees_pages(llm):
    params = SamplingParams(temperature=0.8, seed=5, max_tokens=24, ignore_eos=True)
    expected = [o.outputs[0].token_ids for o in llm.generate([f"Item {i}" for i in range(32)], params)]

    async def one(engine, i):
        async for output in engine.generate(f"Item {i}", params):
            last = output
        return last.outputs[0].token_ids

    async def cut(engine):
        async for _ in engine.generate("To open", SamplingParams(max_tokens=200, ignore_eos=True)):
            break

    async def main():
        async with AsyncLLM(**SMALL) as engine:
            assert await asyncio.gather(*(one(engine, i) for i in range(32))) == expected
            await asyncio.gather(*(cut(engine) for _ in range(8)))
            for _ in range(100):
                if engine.info()["engine"]["num_pages_referenced"] == 0:
                    return
                await asyncio.sleep(0.02)
            raise AssertionError("pages leaked")

    asyncio.run(main())


def test_closing_frees_memory_and_later_calls_raise():
    process = psutil.Process()
    sizes = []
    for i in range(40):
        engine = LLM(**SMALL)
        engine.generate("The", SamplingParams(max_tokens=2))
        engine.close()
        engine.close()
        if i in (9, 39):
            sizes.append(process.memory_info().rss)
    assert sizes[1] - sizes[0] < 20 << 20
    with pytest.raises(fastllm.EngineClosedError):
        engine.generate("The")


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)


def test_a_forked_child_gets_an_error_and_the_parent_goes_on():
    done = run(
        "import os, fastllm\n"
        "llm = fastllm.LLM(max_model_len=128, kv_cache_tokens=512)\n"
        "llm.generate('The', fastllm.SamplingParams(max_tokens=1))\n"
        "pid = os.fork()\n"
        "if pid == 0:\n"
        "    try: llm.generate('The')\n"
        "    except fastllm.EngineClosedError as e: os._exit(7 if 'fork' in str(e) else 8)\n"
        "    os._exit(9)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7\n"
        "assert llm.generate('The', fastllm.SamplingParams(max_tokens=1))[0].finished\n"
    )
    assert done.returncode == 0, done.stderr


def test_exit_while_generating_keeps_the_exit_code():
    done = run(
        "import sys, threading, time, fastllm\n"
        "llm = fastllm.LLM(max_model_len=1024, kv_cache_tokens=4096)\n"
        "p = fastllm.SamplingParams(max_tokens=1000, ignore_eos=True)\n"
        "threading.Thread(target=lambda: llm.generate('The', p), daemon=True).start()\n"
        "time.sleep(0.05)\n"
        "sys.exit(3)\n"
    )
    assert done.returncode == 3, done.stderr


def test_import_starts_no_thread():
    done = run("import threading, os, fastllm; print(threading.active_count(), len(os.listdir('/proc/self/task')))")
    assert done.stdout.split() == ["1", "1"], done.stderr


def test_idle_engine_uses_no_cpu(llm):
    import time

    llm.generate("The", SamplingParams(max_tokens=1))
    time.sleep(0.3)
    start = time.process_time()
    time.sleep(1.0)
    # Bookkeeping of the interpreter only; a spinning thread would show as a whole second.
    assert time.process_time() - start < 0.05
    assert os.getpid() > 0


def test_without_a_tokenizer_prompts_are_token_ids():
    with LLM(skip_tokenizer_init=True, kv_cache_tokens=256) as bare, LLM(kv_cache_tokens=256) as llm:
        params = SamplingParams(temperature=0, max_tokens=8)
        ids = llm.encode("The os module")
        got = bare.generate([ids], params)[0].outputs[0]
        assert got.token_ids == llm.generate([ids], params)[0].outputs[0].token_ids
        assert got.text == ""
        with pytest.raises(InvalidRequestError, match="no tokenizer"):
            bare.generate("text", params)
