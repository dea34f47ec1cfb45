"""The invariance rule as properties: random engines, random company, random arrivals; and long contexts."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from requests_mix import REQUESTS, bits, filler, idle_stats, ids, run_alone

from fastllm import LLM, SamplingParams
from fastllm.request_state import RequestState

MODELS = {"llama-gqa": "float32", "gemma3": "float16", "gpt-oss": "bfloat16", "qwen2-moe": "float32"}
NAMES = list(REQUESTS)
# max_model_len; the longest request of the mix has 92 tokens.
BASE = {"max_model_len": 128}


@pytest.fixture(scope="module")
def alone(checkpoint):
    found = {}
    for name, dtype in MODELS.items():
        with LLM(checkpoint(name), dtype=dtype, num_threads=1, enable_prefix_caching=False, **BASE) as llm:
            found[name] = run_alone(llm)
    return found


engines = st.fixed_dictionaries({
    "max_num_seqs": st.integers(1, 64),
    "max_num_batched_tokens": st.integers(1, 160),
    "kv_cache_tokens": st.sampled_from([112, 128, 144, 208, 512, 8192]),
    "num_threads": st.integers(1, 4),
    "enable_prefix_caching": st.booleans(),
})  # fmt: skip
# (request or filler, priority, salt, polls before the next one, aborted afterwards)
arrivals = st.lists(
    st.tuples(
        st.sampled_from(NAMES) | st.integers(0, 200), st.integers(-2, 2), st.sampled_from(["", "a"]),
        st.integers(0, 3), st.booleans(),
    ),
    min_size=1,
    max_size=24,
)  # fmt: skip


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(model=st.sampled_from(list(MODELS)), engine=engines, schedule=arrivals)
def test_no_engine_and_no_schedule_changes_a_bit(checkpoint, alone, model, engine, schedule):
    with LLM(checkpoint(model), dtype=MODELS[model], **BASE, **engine) as llm:
        native = llm._runtime.engine
        channel = native.open_channel()
        states: dict[int, tuple[object, RequestState]] = {}

        def poll(timeout):
            for delta in channel.poll(timeout):
                states[delta.request_id][1].add(delta)

        for what, priority, salt, polls, is_aborted in schedule:
            prompt, params = REQUESTS[what] if isinstance(what, str) else filler(what)
            state = llm._runtime.submit(prompt, params, channel, priority=priority, cache_salt=salt)
            is_company = not isinstance(what, str)
            states[state.request_id] = (what, state)
            for _ in range(polls):
                poll(0.0005)
            if is_aborted and is_company:
                native.abort(state.request_id)
        while not all(state.finished for _, state in states.values()):
            poll(1.0)
        for what, state in states.values():
            assert state.error is None
            if isinstance(what, str):
                assert bits(state.output()) == alone[model][what], what
        idle_stats(llm)


# Attention works in tiles of 256 positions; prompts end around their borders.
LENGTHS = (1, 15, 255, 256, 257, 511, 513, 700)


def long_request(i):
    params = SamplingParams(
        temperature=(i % 2) * 0.8, seed=i, max_tokens=12, logprobs=3, ignore_eos=True, detokenize=False
    )
    source = random.Random(i)
    shared = LONG_SHARED[: 300 if i % 3 == 0 else 0]
    prompt = shared + [source.randrange(4096) for _ in range(LENGTHS[i % len(LENGTHS)])]
    return prompt, params


LONG_SHARED = ids(7, 300)


@pytest.fixture(scope="module")
def alone_long():
    found = {}
    for dtype in ("float32", "bfloat16"):
        with LLM(dtype=dtype, max_num_batched_tokens=1024, num_threads=1, enable_prefix_caching=False) as llm:
            found[dtype] = [bits(llm.generate([p], s)[0]) for p, s in map(long_request, range(2 * len(LENGTHS)))]
    return found


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param({}, id="crowd"),
        pytest.param({"num_threads": 1, "max_num_batched_tokens": 1024}, id="whole-prompts"),
        pytest.param({"max_num_seqs": 4, "max_num_batched_tokens": 16}, id="chunks-of-16"),
        pytest.param({"max_num_seqs": 8, "max_num_batched_tokens": 103}, id="odd-chunks"),
        pytest.param({"num_threads": 3, "kv_cache_tokens": 1056}, id="preempted"),
        pytest.param({"enable_prefix_caching": True}, id="prefix-cache"),
        pytest.param(
            {"enable_prefix_caching": True, "num_threads": 4, "kv_cache_tokens": 1536, "max_num_batched_tokens": 77},
            id="everything",
        ),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_long_contexts(alone_long, dtype, engine):
    order = list(range(2 * len(LENGTHS)))
    with LLM(dtype=dtype, **{"num_threads": 2, "max_num_seqs": 16, "enable_prefix_caching": False, **engine}) as llm:
        for seed in range(1 + engine.get("enable_prefix_caching", False)):
            random.Random(seed).shuffle(order)
            prompts, params = zip(*map(long_request, order), strict=True)
            for i, output in zip(order, llm.generate(list(prompts), list(params)), strict=True):
                assert bits(output) == alone_long[dtype][i], f"length {len(prompts[order.index(i)])}"
        idle_stats(llm)
