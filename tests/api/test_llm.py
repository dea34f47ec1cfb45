"""What a user of LLM and AsyncLLM relies on."""

import math
import threading

import pytest

import fastllm
from fastllm import LLM, InvalidRequestError, SamplingParams

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


def test_a_closed_engine_refuses_every_call():
    engine = LLM(**SMALL)
    engine.close()
    engine.close()
    for call in (engine.generate, lambda text: list(engine.stream(text))):
        with pytest.raises(fastllm.EngineClosedError):
            call("The")
    with pytest.raises(fastllm.EngineClosedError):
        engine.info()


def test_without_a_tokenizer_prompts_are_token_ids():
    with LLM(skip_tokenizer_init=True, kv_cache_tokens=256) as bare, LLM(kv_cache_tokens=256) as llm:
        params = SamplingParams(temperature=0, max_tokens=8)
        ids = llm.encode("The os module")
        got = bare.generate([ids], params)[0].outputs[0]
        assert got.token_ids == llm.generate([ids], params)[0].outputs[0].token_ids
        assert got.text == ""
        with pytest.raises(InvalidRequestError, match="no tokenizer"):
            bare.generate("text", params)
