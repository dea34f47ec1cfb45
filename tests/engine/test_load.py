"""Load and overload: nobody hears another, a pool that is far too small, what can never fit, a full queue."""

import time

import pytest
from requests_mix import bits, idle_stats, ids

from fastllm import LLM, InvalidRequestError, QueueFullError, SamplingParams

NUM_PROMPTS = 48
OPTIONS = {"max_model_len": 512, "num_threads": 2, "max_num_seqs": 32}
TEXTS = ("The os module provides", "A generator is a function", "To open a file, use", "Exceptions are raised when")


def prompt(i):
    return f"{TEXTS[i % 4]} ({i}). " + f"{TEXTS[(i + 1) % 4]} " * (i % 7)


def params(i, **changes):
    values = {"temperature": (i % 3) * 0.5, "seed": i, "max_tokens": 24 + i % 16, "logprobs": 3, "ignore_eos": True}
    return SamplingParams(**{**values, **changes})


def test_48_prompts_alone_under_32_fold_load_and_from_a_warm_cache():
    with LLM(**OPTIONS, enable_prefix_caching=False) as llm:
        alone = [bits(llm.generate(prompt(i), params(i))[0]) for i in range(NUM_PROMPTS)]
    with LLM(**OPTIONS) as llm:
        everything = [prompt(i) for i in range(NUM_PROMPTS)], [params(i) for i in range(NUM_PROMPTS)]
        under_load = llm.generate(*everything)
        assert [bits(o) for o in under_load] == alone
        warm = llm.generate(*everything)
        assert [bits(o) for o in warm] == alone
        assert sum(o.metrics.num_cached_tokens for o in warm) > sum(o.metrics.num_cached_tokens for o in under_load)
        stats = idle_stats(llm)
        assert stats["num_generated_tokens"] / stats["num_steps"] > 16, "the load is meant to be 32-fold"


def test_16_requests_of_240_tokens_in_a_pool_of_1024():
    def request(i):
        return ids(i, 120), SamplingParams(temperature=0.8, seed=i, max_tokens=120, logprobs=1, ignore_eos=True)

    requests = [request(i) for i in range(16)]
    with LLM(**OPTIONS, enable_prefix_caching=False) as llm:
        alone = [bits(llm.generate([p], s)[0]) for p, s in requests]
    for caching in (False, True):
        with LLM(**OPTIONS, kv_cache_tokens=1024, enable_prefix_caching=caching) as llm:
            outputs = llm.generate([p for p, _ in requests], [s for _, s in requests])
            assert [bits(o) for o in outputs] == alone
            stats = idle_stats(llm)
        assert stats["num_preemptions"] > 0
        # Nobody starves: who came first is done first (within the four that fit at a time), and what is computed twice
        # is less than what is computed once.
        ends = [o.metrics.total_s for o in outputs]
        for i in range(4, 16):
            assert ends[i] > ends[i - 4]
        assert stats["num_prompt_tokens"] < 2 * 16 * 120
        assert max(o.metrics.num_preemptions for o in outputs) <= 3


def test_what_never_fits_is_refused_at_once_with_both_numbers():
    with LLM(**OPTIONS, kv_cache_tokens=128) as llm:
        one = SamplingParams(max_tokens=1)
        took = []
        for tokens, wanted, numbers in (
            (ids(1, 200), one, ("200", "129")),  # a prompt that is larger than the pool
            (ids(1, 100), SamplingParams(max_tokens=60), ("160", "129")),  # with its output
            (ids(1, 100_000), one, ("100000", "129")),
        ):
            start = time.perf_counter()
            with pytest.raises(InvalidRequestError) as error:
                llm.generate([tokens], wanted)
            took.append(time.perf_counter() - start)
            assert all(number in str(error.value) for number in numbers), error.value
            assert "KV cache" in str(error.value)
        print("refused in", [f"{1000 * t:.1f} ms" for t in took])
        assert llm.generate([ids(1, 100)], SamplingParams(max_tokens=29))[0].finished, "what fits exactly is served"
        # n sequences that do not fit together take turns: each is what it is with room for all.
        many = SamplingParams(n=8, max_tokens=60, temperature=1.0, seed=1, logprobs=0, ignore_eos=True)
        together = llm.generate([ids(2, 60)], many)[0]
        idle_stats(llm)
    with LLM(**OPTIONS) as llm:
        assert bits(llm.generate([ids(2, 60)], many)[0]) == bits(together)
        with pytest.raises(InvalidRequestError, match="max_model_len is 512"):
            llm.generate([ids(1, 512)], one)


def test_a_full_queue_refuses_and_everybody_it_took_is_served():
    with LLM(**{**OPTIONS, "max_num_seqs": 1}, max_queue=5) as llm:
        engine = llm._runtime.engine
        channel = engine.open_channel()
        taken, refused, slowest = set(), 0, 0.0
        for i in range(60):
            start = time.perf_counter()
            try:
                taken.add(engine.submit(ids(i, 20), {"max_tokens": 40, "ignore_eos": True}, channel))
            except QueueFullError as error:
                refused += 1
                slowest = max(slowest, time.perf_counter() - start)
                assert "max_queue is 5" in str(error)
        assert refused > 0 and len(taken) >= 5
        print(f"{refused} refused, the slowest in {1000 * slowest:.2f} ms")
        while taken:
            for delta in channel.poll(5.0):
                if delta.finish_reason:
                    assert delta.finish_reason == "length"
                    taken.discard(delta.request_id)
        # A blocking call with more prompts than the queue holds waits instead.
        assert len(llm.generate([ids(i, 5) for i in range(40)], SamplingParams(max_tokens=3))) == 40
        idle_stats(llm)


def test_a_better_priority_overtakes_those_who_wait():
    with LLM(**{**OPTIONS, "max_num_seqs": 1}) as llm:
        engine = llm._runtime.engine
        channel = engine.open_channel()
        params = {"max_tokens": 60, "ignore_eos": True}
        order = [engine.submit(ids(9, 400), params, channel)]
        assert channel.poll(5.0), "has the only seat before the others come"
        order += [engine.submit(ids(i, 5), params, channel, priority) for i, priority in enumerate((5, 0, 5, -1, 0))]
        ends = []
        while len(ends) < 6:
            ends += [d.request_id for d in channel.poll(5.0) if d.finish_reason]
        first, a5, a0, b5, best, b0 = order
        assert ends == [first, best, a0, b0, a5, b5]
