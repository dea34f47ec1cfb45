"""AsyncLLM: many streams, many loops, consumers that leave, are slow, or raise."""

import asyncio
import gc
import itertools
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from fastllm import (
    LLM,
    AsyncLLM,
    EngineClosedError,
    InvalidRequestError,
    OutOfMemoryError,
    QueueFullError,
    SamplingParams,
    _core,
)
from fastllm.async_llm import _LoopPoller

SMALL = {"max_model_len": 512, "max_num_seqs": 16, "kv_cache_tokens": 8192, "num_threads": 1}
SHORT = SamplingParams(temperature=0.8, seed=5, max_tokens=16, ignore_eos=True, logprobs=1)
LONG = SamplingParams(max_tokens=480, ignore_eos=True)


@pytest.fixture(scope="module")
def expected():
    with LLM(**SMALL) as llm:
        outputs = llm.generate([f"Item {i}" for i in range(32)], SHORT)
        return [(o.outputs[0].token_ids, o.outputs[0].text, o.outputs[0].logprobs) for o in outputs]


@pytest.fixture
def engine():
    llm = AsyncLLM(**SMALL)
    yield llm
    llm.close()


async def collect(llm, i, params=SHORT):
    async for output in llm.generate(f"Item {i}", params):
        last = output
    return last.outputs[0].token_ids, last.outputs[0].text, last.outputs[0].logprobs


async def until_idle(llm, seconds=30.0):
    """Pages come back within a step of the abort; the wait is for the counters to say so."""
    deadline = time.monotonic() + seconds
    while (stats := llm.info()["engine"])["num_pages_referenced"] or stats["num_running"] or stats["num_waiting"]:
        assert time.monotonic() < deadline, stats
        await asyncio.sleep(0.002)
    assert stats["num_pages_free"] + stats["num_pages_cached"] == stats["num_pages"]


def test_32_streams_give_what_the_blocking_interface_gives(engine, expected):
    async def main():
        assert await asyncio.gather(*(collect(engine, i) for i in range(32))) == expected
        await until_idle(engine)

    asyncio.run(main())


@pytest.mark.parametrize("pause_s", [0.0, 0.01])
def test_deltas_joined_are_the_whole_output(engine, pause_s):
    params = SHORT.replace(n=3, max_tokens=40)

    async def main():
        async for output in engine.generate("Item 1", params):
            whole = output
        parts = [[], [], []]
        async for output in engine.generate("Item 1", params, deltas=True):
            assert output.outputs, "an output without news"
            for completion in output.outputs:
                parts[completion.index].append(completion)
            await asyncio.sleep(pause_s)
        for completion, pieces in zip(whole.outputs, parts, strict=True):
            assert "".join(piece.text for piece in pieces) == completion.text
            assert [token for piece in pieces for token in piece.token_ids] == completion.token_ids
            assert [entry for piece in pieces for entry in piece.logprobs] == completion.logprobs
            assert [piece.finish_reason for piece in pieces] == [None] * (len(pieces) - 1) + ["length"]
            assert all(piece.token_ids for piece in pieces)
        assert output.metrics.num_generated_tokens == 120

    asyncio.run(main())


def test_a_stream_only_grows_and_ends_once(engine):
    async def main():
        seen = []
        async for output in engine.generate("Item", SHORT):
            seen.append(output)
        for before, after in itertools.pairwise(seen):
            assert not before.finished
            assert after.outputs[0].text.startswith(before.outputs[0].text)
            assert after.outputs[0].token_ids[: len(before.outputs[0].token_ids)] == before.outputs[0].token_ids
        assert seen[-1].finished and seen[-1].outputs[0].finish_reason == "length"

    asyncio.run(main())


def leave_by_break(engine):
    async def consume():
        async for _ in engine.generate("To open", LONG):
            break

    return consume()


def leave_by_cancel(engine):
    async def consume():
        async def forever():
            async for _ in engine.generate("To open", LONG):
                pass

        task = asyncio.create_task(forever())
        while not engine.info()["engine"]["num_running"]:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    return consume()


def leave_by_timeout(engine):
    async def consume():
        async def forever():
            async for _ in engine.generate("To open", LONG):
                pass

        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(forever(), 0.02)

    return consume()


def leave_by_error(engine):
    async def consume():
        with pytest.raises(ZeroDivisionError):
            async for _ in engine.generate("To open", LONG):
                _ = 1 // 0

    return consume()


def leave_by_aclose(engine):
    async def consume():
        stream = engine.generate("To open", LONG)
        await anext(stream)
        await stream.aclose()

    return consume()


def leave_by_forgetting(engine):
    async def consume():
        stream = engine.generate("To open", LONG)
        await anext(stream)
        del stream
        gc.collect()

    return consume()


def never_started(engine):
    async def consume():
        engine.generate("To open", LONG)

    return consume()


LEAVE = [
    leave_by_break,
    leave_by_cancel,
    leave_by_timeout,
    leave_by_error,
    leave_by_aclose,
    leave_by_forgetting,
    never_started,
]


@pytest.mark.parametrize("leave", LEAVE, ids=lambda f: f.__name__)
def test_a_consumer_that_leaves_frees_everything_and_disturbs_nobody(engine, expected, leave):
    async def main():
        others = [asyncio.create_task(collect(engine, i)) for i in range(8)]
        await asyncio.gather(*(leave(engine) for _ in range(6)))
        assert await asyncio.gather(*others) == expected[:8]
        await until_idle(engine)

    asyncio.run(main())


def test_abort_by_request_id_ends_the_stream(engine):
    async def main():
        async for output in engine.generate("To open", LONG):
            engine.abort(output.request_id)
            engine.abort(output.request_id)
        assert output.finished and output.outputs[0].finish_reason == "abort"
        assert len(output.outputs[0].token_ids) < 480
        engine.abort(output.request_id)
        engine.abort("123456789")
        await until_idle(engine)

    asyncio.run(main())


def test_many_event_loops_at_once_and_one_after_another(engine, expected):
    found = {}

    def serve(i):
        found[i] = asyncio.run(collect(engine, i))

    threads = [threading.Thread(target=serve, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [found[i] for i in range(8)] == expected[:8]
    for i in range(12):
        assert asyncio.run(collect(engine, i)) == expected[i]
    asyncio.run(until_idle(engine))
    deadline = time.monotonic() + 30
    while sum(t.name == "fastllm-poller" for t in threading.enumerate()) > 1:
        gc.collect()
        assert time.monotonic() < deadline, "loops that are gone leave no thread behind"
        time.sleep(0.01)
    assert len(engine._pollers) <= 1


def test_a_loop_that_is_closed_in_the_middle_frees_everything(engine, expected):
    loop = asyncio.new_event_loop()
    streams = [engine.generate(f"Item {i}", LONG) for i in range(4)]
    for stream in streams:
        loop.run_until_complete(anext(stream))
    loop.close()  # nobody closed the generators
    asyncio.run(until_idle(engine, 5.0))
    assert asyncio.run(collect(engine, 3)) == expected[3]


def test_engines_that_are_dropped_leave_no_thread():
    async def main():
        for i in range(5):
            await collect(AsyncLLM(**SMALL), i)
            gc.collect()
        deadline = time.monotonic() + 30
        while any(t.name == "fastllm-poller" for t in threading.enumerate()):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)

    asyncio.run(main())


def test_a_slow_consumer_loses_nothing_and_holds_up_nobody(engine, expected):
    async def slow(i, is_idle):
        outputs = []
        async for output in engine.generate(f"Item {i}", SHORT):
            outputs.append(output)
            await is_idle.wait()
        return outputs[-1].outputs[0].token_ids, len(outputs)

    async def main():
        is_idle = asyncio.Event()
        snails = [asyncio.create_task(slow(i, is_idle)) for i in range(4)]
        assert await asyncio.gather(*(collect(engine, i) for i in range(4, 12))) == expected[4:12]
        await until_idle(engine)  # the engine is done with the slow ones too: it waits for no consumer
        is_idle.set()
        for i, (tokens, outputs) in enumerate(await asyncio.gather(*snails)):
            assert tokens == expected[i][0]
            assert outputs <= 2, "what was not taken in time is merged"

    asyncio.run(main())


def test_a_blocked_event_loop_holds_up_no_engine(engine, expected):
    async def main():
        task = asyncio.create_task(collect(engine, 0))
        while not engine.info()["engine"]["num_requests"]:
            await asyncio.sleep(0)
        deadline = time.monotonic() + 30
        while not engine.info()["engine"]["num_requests_finished"]:  # without ever giving the loop a turn
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert await task == expected[0]

    asyncio.run(main())


def test_refusals_come_before_the_first_output(engine):
    async def main():
        for params in (SamplingParams(top_p=2.0), SamplingParams(max_tokens=10**6)):
            with pytest.raises(InvalidRequestError):
                await anext(engine.generate("The", params))
        with pytest.raises(InvalidRequestError):
            await anext(engine.generate([], SHORT))
        await until_idle(engine)

    asyncio.run(main())


def test_a_full_queue_refuses_and_serves_again():
    async def main():
        async with AsyncLLM(**{**SMALL, "max_num_seqs": 2}, max_queue=4) as llm:
            results = await asyncio.gather(*(collect(llm, i) for i in range(40)), return_exceptions=True)
            refused = [r for r in results if isinstance(r, QueueFullError)]
            served = [r for r in results if isinstance(r, tuple)]
            assert refused and served and len(refused) + len(served) == 40
            assert "max_queue is 4" in str(refused[0])
            await until_idle(llm)
            assert (await collect(llm, 1))[0]

    asyncio.run(main())


def test_closing_ends_every_stream_with_an_error():
    async def main():
        llm = AsyncLLM(**SMALL)
        tasks = [asyncio.create_task(collect(llm, i, LONG)) for i in range(20)]
        while llm.info()["engine"]["num_running"] < 8:
            await asyncio.sleep(0.001)
        await asyncio.get_running_loop().run_in_executor(None, llm.close)
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
        assert all(isinstance(r, EngineClosedError) for r in results), results
        with pytest.raises(EngineClosedError):
            await collect(llm, 0)
        llm.close()

    asyncio.run(main())


def test_closing_reaches_consumers_while_older_results_are_handed_over(monkeypatch):
    hand_over = _LoopPoller._hand_over

    def slow(self, deltas, failure):
        time.sleep(0.1)  # as when other threads keep the interpreter
        return hand_over(self, deltas, failure)

    monkeypatch.setattr(_LoopPoller, "_hand_over", slow)

    async def main():
        llm = AsyncLLM(**SMALL)
        tasks = [asyncio.create_task(collect(llm, i, LONG)) for i in range(4)]
        while llm.info()["engine"]["num_running"] < 4:
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.05)
        await asyncio.get_running_loop().run_in_executor(None, llm.close)
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert all(isinstance(r, EngineClosedError) for r in results), results

    asyncio.run(main())


def test_after_results_were_lost_later_requests_are_served(engine, expected, monkeypatch):
    poll, failures = _core.Channel.poll, []

    def lossy(self, timeout_s):
        if failures:
            raise failures.pop()
        return poll(self, timeout_s)

    async def main():
        assert await collect(engine, 0) == expected[0]
        monkeypatch.setattr(_core.Channel, "poll", lossy)
        task = asyncio.create_task(collect(engine, 1, LONG))
        while engine.info()["engine"]["num_running"] < 1:  # a failure before it is there would not be its own
            await asyncio.sleep(0.001)
        failures.append(OutOfMemoryError("memory ran out while results were stored"))
        with pytest.raises(OutOfMemoryError):
            await asyncio.wait_for(task, 60)
        assert not failures
        assert await asyncio.wait_for(collect(engine, 2), 60) == expected[2]
        await until_idle(engine)

    asyncio.run(main())


def test_the_example_service_runs():
    example = Path(__file__).parents[2] / "examples" / "async_service.py"
    done = subprocess.run([sys.executable, str(example)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert sum(line.startswith("stream ") for line in lines) == 32
    idle = next(line for line in lines if line.startswith("idle engine"))
    assert float(idle.split()[2]) < 2.0, idle
