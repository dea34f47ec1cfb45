"""A request's tokens and log-probabilities are the same bits in any company."""

import random
import time

import pytest

from fastllm import LLM, SamplingParams

PROMPTS = ["The os module provides", "A generator is a function", "To open a file, use", "Exceptions are raised when"]
BASE = {"max_model_len": 256, "max_num_seqs": 16, "kv_cache_tokens": 8192, "num_threads": 1}


def bits(output):
    """Everything of an output that must not depend on the batch."""
    return [
        (c.token_ids, c.text, c.finish_reason, [{t: lp.logprob for t, lp in d.items()} for d in c.logprobs])
        for c in output.outputs
    ]


def idle_stats(llm):
    """Counters once the engine has nothing to do; they are published after the step that sent the last output."""
    deadline = time.monotonic() + 1.0
    while (stats := llm.info()["engine"])["num_pages_referenced"] and time.monotonic() < deadline:
        time.sleep(0.001)
    return stats


def params(i, **changes):
    values = {"temperature": 0.9 if i % 2 else 0.0, "seed": i, "max_tokens": 24, "logprobs": 3, "ignore_eos": True}
    return SamplingParams(**{**values, **changes})


def prompt(i):
    return f"{PROMPTS[i % len(PROMPTS)]} {i} " * (1 + i % 5)


@pytest.fixture(scope="module")
def alone():
    with LLM(**BASE, enable_prefix_caching=False) as llm:
        return [bits(llm.generate(prompt(i), params(i))[0]) for i in range(12)]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({}, id="with-others"),
        pytest.param({"max_num_batched_tokens": 16}, id="prefill-in-small-chunks"),
        pytest.param({"max_num_seqs": 2, "max_num_batched_tokens": 2}, id="prefill-in-chunks-of-one-or-two"),
        pytest.param({"max_num_batched_tokens": 61}, id="prefill-in-odd-chunks"),
        pytest.param({"enable_prefix_caching": True}, id="prefix-cache"),
        pytest.param({"num_threads": 2}, id="two-threads"),
        pytest.param({"num_threads": 5}, id="five-threads"),
        pytest.param({"kv_cache_tokens": 320}, id="preempted"),
    ],
)
def test_same_bits_in_a_crowd(alone, changes):
    order = list(range(12))
    with LLM(**{**BASE, "enable_prefix_caching": False, **changes}) as llm:
        for seed in range(2):  # the second round hits the prefix cache where there is one
            random.Random(seed).shuffle(order)
            outputs = llm.generate([prompt(i) for i in order], [params(i) for i in order])
            for i, output in zip(order, outputs, strict=True):
                assert bits(output) == alone[i]
        stats = idle_stats(llm)
        if "kv_cache_tokens" in changes:
            assert stats["num_preemptions"] > 0, "the case is meant to preempt"
        if changes.get("enable_prefix_caching"):
            assert stats["prefix_hit_tokens"] > 0, "the case is meant to hit"
        assert stats["num_pages_referenced"] == 0
        assert stats["num_pages_free"] + stats["num_pages_cached"] == stats["num_pages"]


def test_sequences_of_one_request_differ_and_are_the_same_in_a_crowd():
    with LLM(**BASE) as llm:
        wanted = SamplingParams(n=4, temperature=1.0, seed=3, max_tokens=12, logprobs=0, ignore_eos=True)
        first = llm.generate(PROMPTS[0], wanted)[0]
        assert len({tuple(c.token_ids) for c in first.outputs}) > 1
        crowd = llm.generate([prompt(i) for i in range(6)] + [PROMPTS[0]], [params(i) for i in range(6)] + [wanted])
        assert bits(crowd[-1]) == bits(first)
        assert idle_stats(llm)["num_pages_referenced"] == 0


def test_prompt_logprobs_do_not_depend_on_chunks():
    ask = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=2)
    found = []
    for chunk in (7, 16, 256):
        with LLM(**{**BASE, "max_num_seqs": 4, "max_num_batched_tokens": chunk}) as llm:
            found.append(llm.generate(prompt(4), ask)[0].prompt_logprobs)
    assert found[0] == found[1] == found[2]
    assert found[0][0] is None and len(found[0]) > 30
