"""Faults inside the engine end the requests that they hit, with the cause, and nothing else.

The first part runs on every build. The second needs the fault points (-DFASTLLM_FAULTS=ON): tools/sanitize.sh builds
them into the extension and runs this file; in a release they must be absent.
"""

import os

import pytest

import fastllm
from fastllm import LLM, SamplingParams, _core

HAS_FAULTS = hasattr(_core, "arm_fault")
needs_fault_points = pytest.mark.skipif(not HAS_FAULTS, reason="tools/sanitize.sh runs these, with fault points")


def make_engine(**changes):
    values = {
        "num_pages": 64,
        "max_model_len": 128,
        "max_num_seqs": 2,
        "max_num_batched_tokens": 16,
        "max_logit_rows": 8,
        "max_queue": 64,
        "enable_prefix_caching": True,
        "seed": 0,
        "eos_ids": [],
        "byte_table": None,
    }
    return _core.make_fake_engine(_core.EngineConfig(**{**values, **changes}), page_size=4, vocab_size=50)


def finish(engine, channel, ids):
    """Tokens and the error of each request, once all have ended."""
    tokens, errors, open_ids = {i: [] for i in ids}, {}, set(ids)
    for _ in range(200):
        for delta in channel.poll(0.1):
            tokens[delta.request_id] += delta.token_ids
            if delta.finish_reason is not None:
                open_ids.remove(delta.request_id)
                errors[delta.request_id] = delta.error
        if not open_ids:
            return tokens, errors
    raise AssertionError(f"requests {open_ids} did not end: {engine.stats()}")


def run_batch(fail_in):
    engine, controls = make_engine()
    try:
        channel = engine.open_channel()
        controls.delay_us = 2000  # all four are there before the first has ended
        params = {"max_tokens": 8, "temperature": 0.0}
        ids = [engine.submit([1, 2, 3 + i], params, channel) for i in range(4)]
        controls.fail_in = fail_in
        tokens, errors = finish(engine, channel, ids)
        controls.delay_us = 0
        again = engine.submit([1, 2, 3], params, channel)
        after, _ = finish(engine, channel, [again])
        return [tokens[i] for i in ids], [errors[i] for i in ids], after[again]
    finally:
        engine.close()


@pytest.mark.parametrize("fail_in", [1, 2, 5, 9])
def test_a_failed_step_ends_its_sequences_alone(fail_in):
    wanted, no_errors, _ = run_batch(0)
    assert no_errors == [None] * 4
    tokens, errors, after = run_batch(fail_in)
    failed = [e for e in errors if e is not None]
    assert 1 <= len(failed) <= 2, "a step holds at most max_num_seqs sequences"
    assert all(isinstance(e, fastllm.DeviceError) and "injected fault" in str(e) for e in failed)
    for got, want, error in zip(tokens, wanted, errors, strict=True):
        assert got == (want if error is None else want[: len(got)])
    assert after == wanted[0], "the engine goes on as if nothing had been"


def test_a_release_has_no_fault_points():
    is_test_build = os.environ.get("FASTLLM_TEST_FAULTS") == "1"
    assert is_test_build == HAS_FAULTS


@pytest.fixture
def armed():
    yield _core.arm_fault
    for point in ("alloc", "kernel", "queue", "io"):
        _core.arm_fault(point, 0)


SMALL = {"max_model_len": 128, "kv_cache_tokens": 1024, "num_threads": 2}
GREEDY = SamplingParams(temperature=0, max_tokens=8)


@needs_fault_points
@pytest.mark.parametrize("nth", [1, 2, 17, 100, 501])
@pytest.mark.parametrize(
    ("point", "error"), [("kernel", fastllm.DeviceError), ("queue", fastllm.InternalError)], ids=["kernel", "queue"]
)
def test_generate_raises_the_cause_and_works_again(armed, point, error, nth):
    with LLM(**SMALL) as llm:
        want = llm.generate("The os module", GREEDY)[0].outputs[0].token_ids
        armed(point, nth)
        if nth <= _core.fault_passes(point) or point == "kernel" or nth <= 2:
            with pytest.raises(error, match="injected fault"):
                llm.generate("The os module", GREEDY)
        armed(point, 0)
        assert llm.generate("The os module", GREEDY)[0].outputs[0].token_ids == want


@needs_fault_points
@pytest.mark.parametrize("nth", [1, 2, 3, 4, 5])
def test_a_refused_allocation_refuses_the_model(armed, nth):
    armed("alloc", nth)
    try:
        LLM(**SMALL).close()
    except fastllm.OutOfMemoryError:
        pass
    else:
        assert _core.fault_passes("alloc") < nth
    armed("alloc", 0)
    LLM(**SMALL).close()


@needs_fault_points
@pytest.mark.parametrize("nth", [1, 5, 20])
def test_a_tensor_that_cannot_be_read_refuses_the_model(armed, nth):
    armed("io", nth)
    with pytest.raises(fastllm.CheckpointError, match="injected fault"):
        LLM(**SMALL)
    armed("io", 0)
    LLM(**SMALL).close()
