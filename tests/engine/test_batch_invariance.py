"""A request's tokens and log-probabilities are the same bits in any company.

Everything is compared with the request alone: an engine that runs one request at a time, reads whole prompts in one
step, with one thread, without a prefix cache and with room for all.
"""

import itertools

import pytest
from requests_mix import REQUESTS, idle_stats, ids, run_alone, run_together

from fastllm import LLM, SamplingParams

BASE = {"max_model_len": 128, "max_num_seqs": 64, "max_num_batched_tokens": 4096, "kv_cache_tokens": 16384}
BASE |= {"num_threads": 1, "enable_prefix_caching": False}
NAMES = list(REQUESTS)
SIMPLE = ("llama-gqa", "float32", "auto")
RICH = ("gpt-oss", "bfloat16", "auto")  # experts, windows, sinks, biases
DTYPES = ("float32", "bfloat16", "float16")
KV_DTYPES = (*DTYPES, "int8")
RICH_INT8 = ("gpt-oss", "bfloat16", "int8")
ARCHITECTURES = [
    "llama-gqa", "llama-mha", "llama-mqa-tied-bias", "llama-linear", "llama-dynamic", "llama-yarn", "llama-yarn-mscale",
    "llama-llama3", "mistral-window", "qwen2", "qwen2-window", "qwen3", "phi3", "phi3-longrope", "gemma2", "gemma3",
    "olmo2", "mixtral", "qwen2-moe", "qwen3-moe", "gpt-oss",
]  # fmt: skip


@pytest.fixture(scope="module")
def open_llm(checkpoint):
    def open_one(model, **changes):
        name, dtype, kv_dtype, *quantized = model
        options = {**BASE, **dict(zip(("quantization", "activation_mode"), quantized, strict=False)), **changes}
        return LLM(checkpoint(name), dtype=dtype, kv_cache_dtype=kv_dtype, **options)

    return open_one


@pytest.fixture(scope="module")
def alone(open_llm):
    known = {}

    def bits_of(model):
        if model not in known:
            with open_llm(model) as llm:
                known[model] = run_alone(llm)
        return known[model]

    return bits_of


def test_every_architecture_is_in_the_list():
    from checkpoints import CASES

    assert [case.name for case in CASES] == ARCHITECTURES


# One row per way in which the company of a request can differ.
BULLETS = {
    "one-other": ({}, 1),
    "two-others": ({}, 2),
    "7-others": ({}, 7),
    "16-others": ({}, 16),
    "31-others": ({}, 31),
    "63-others": ({}, 63),
    "chunks-of-1": ({"max_num_seqs": 1, "max_num_batched_tokens": 1}, 0),
    "chunks-of-2": ({"max_num_seqs": 2, "max_num_batched_tokens": 2}, 3),
    "chunks-of-3": ({"max_num_seqs": 3, "max_num_batched_tokens": 3}, 3),
    "chunks-of-7": ({"max_num_seqs": 5, "max_num_batched_tokens": 7}, 5),
    "chunks-of-16": ({"max_num_seqs": 8, "max_num_batched_tokens": 16}, 5),
    "chunks-of-61": ({"max_num_seqs": 16, "max_num_batched_tokens": 61}, 20),
    "one-thread-crowd": ({"num_threads": 1}, 20),
    "two-threads": ({"num_threads": 2}, 20),
    "three-threads": ({"num_threads": 3}, 20),
    "four-threads": ({"num_threads": 4}, 20),
    "prefix-cache": ({"enable_prefix_caching": True}, 20),
    "prefix-cache-evicting": ({"enable_prefix_caching": True, "kv_cache_tokens": 192, "max_num_seqs": 6}, 20),
    "preempted": ({"kv_cache_tokens": 128, "max_num_seqs": 16}, 20),
    "preempted-with-prefix-cache": ({"kv_cache_tokens": 128, "max_num_seqs": 16, "enable_prefix_caching": True}, 20),
    "everything": (
        {"kv_cache_tokens": 144, "max_num_seqs": 9, "max_num_batched_tokens": 13, "num_threads": 3,
         "enable_prefix_caching": True}, 30,
    ),
}  # fmt: skip


@pytest.mark.parametrize("bullet", BULLETS)
@pytest.mark.parametrize("model", [SIMPLE, RICH, RICH_INT8], ids="-".join)
def test_same_bits_in_any_company(open_llm, alone, model, bullet):
    changes, num_fillers = BULLETS[bullet]
    with open_llm(model, **changes) as llm:
        # Each request among exactly so many others; or all of them, and again with what that has left in the cache.
        rounds = [[name] for name in NAMES] if num_fillers <= 7 else [NAMES, NAMES]
        for seed, names in enumerate(rounds):
            found = run_together(llm, names, num_fillers, seed)
            for name in names:
                assert found[name] == alone(model)[name], f"{bullet}: {name}"
        stats = idle_stats(llm)
    mean_batch = stats["num_generated_tokens"] / stats["num_steps"]
    assert num_fillers < 16 or len(changes) > 1 or mean_batch > 4, "the case is meant to be a crowd"
    assert ("preempted" not in bullet and bullet != "everything") or stats["num_preemptions"] > 0
    assert not changes.get("enable_prefix_caching") or stats["prefix_hit_tokens"] > 0


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_architecture_and_weight_type(open_llm, alone, name, dtype):
    model = (name, dtype, "auto")
    expected = alone(model)
    crowd = {"kv_cache_tokens": 144, "max_num_seqs": 9, "max_num_batched_tokens": 13, "enable_prefix_caching": True}
    with open_llm(model, num_threads=3, **crowd) as llm:
        for seed in range(2):
            assert run_together(llm, NAMES, 10, seed) == expected
        stats = idle_stats(llm)
        assert stats["num_preemptions"] > 0 and stats["prefix_hit_tokens"] > 0
    with open_llm(model, num_threads=2) as llm:
        assert run_together(llm, NAMES, 17) == expected


# Groups of 128 with zeros beside whole rows of 107 columns; experts of whole rows; every way to take activations.
@pytest.mark.parametrize(
    ("name", "quantization", "mode"),
    [("phi3", "int4", mode) for mode in ("a8", "a8r", "a15", "bf16", "f32")]
    + [("phi3", "int8", "a8r"), ("gemma2", "int4", "a8r"), ("gpt-oss", "int4-row", "a8r"),
       ("qwen2-moe", "int8", "a15"), ("mixtral", "int4-row", "bf16")],
)  # fmt: skip
def test_every_type_of_integer_weights(open_llm, alone, name, quantization, mode):
    model = (name, "bfloat16", "auto", quantization, mode)
    crowd = {"kv_cache_tokens": 144, "max_num_seqs": 9, "max_num_batched_tokens": 13, "enable_prefix_caching": True}
    with open_llm(model, num_threads=3, **crowd) as llm:
        held = set(llm.info()["weights"])
        assert any(kind.startswith(quantization[:4]) for kind in held), held
        for seed in range(2):
            assert run_together(llm, NAMES, 10, seed) == alone(model)


@pytest.mark.parametrize("name", ["llama-gqa", "gemma2"])
@pytest.mark.parametrize(
    ("dtype", "kv_dtype"), [pair for pair in itertools.product(DTYPES, KV_DTYPES) if pair[0] != pair[1]]
)
def test_every_type_of_the_kv_cache(open_llm, alone, name, dtype, kv_dtype):
    model = (name, dtype, kv_dtype)
    crowd = {"kv_cache_tokens": 144, "max_num_seqs": 9, "max_num_batched_tokens": 13, "enable_prefix_caching": True}
    with open_llm(model, num_threads=2, **crowd) as llm:
        assert run_together(llm, NAMES, 10) == alone(model)


@pytest.mark.parametrize("model", [SIMPLE, RICH], ids=lambda m: "-".join(m[:2]))
def test_prefix_cache_off_cold_hit_partial_hit_and_hit_after_eviction(open_llm, alone, model):
    expected = alone(model)
    prompt = REQUESTS["prompt-logprobs"][0]
    plain = SamplingParams(temperature=0, max_tokens=12, logprobs=2, ignore_eos=True)
    with open_llm(model) as llm:
        without = llm.generate([prompt], plain)[0]
    with open_llm(model, enable_prefix_caching=True, kv_cache_tokens=256, max_num_seqs=2) as llm:

        def cached():
            output = llm.generate([prompt], plain)[0]
            assert [c.token_ids for c in output.outputs] == [c.token_ids for c in without.outputs]
            assert [c.logprobs for c in output.outputs] == [c.logprobs for c in without.outputs]
            return output.metrics.num_cached_tokens

        assert cached() == 0, "cold"
        assert cached() == 64, "all full pages but the one that the last token is in"
        # Of 16 pages, 4 are the prompt's. Others fill 6, then 3, and then need 5 where 3 are free.
        for i, length in enumerate((100, 60, 80)):
            llm.generate([ids(500 + i, length)], SamplingParams(max_tokens=1))
        assert cached() == 32, "the tail was evicted, the head was not"
        assert cached() == 64, "and it is back"
        for i in range(4):
            llm.generate([ids(600 + i, 100)], SamplingParams(max_tokens=1))
        assert cached() == 0, "all of it was evicted"
        # Only the beginning is known.
        shared = llm.generate([prompt[:40] + ids(502, 20)], plain)[0]
        assert shared.metrics.num_cached_tokens == 32
        for seed in range(2):
            assert run_together(llm, NAMES, 8, seed) == expected
        assert run_together(llm, NAMES, 0, 3, salt="another tenant") == expected


def test_salts_do_not_share(open_llm):
    with open_llm(SIMPLE, enable_prefix_caching=True) as llm:
        one = SamplingParams(max_tokens=1)
        cached = [
            llm.generate([ids(1, 40)], one, cache_salt=salt)[0].metrics.num_cached_tokens for salt in ("a", "b", "a")
        ]
    assert cached == [0, 0, 32]


# What n > 1 means: sequence i of a request draws with the random numbers of (seed, i, position).
@pytest.mark.parametrize("model", [SIMPLE, RICH], ids=lambda m: "-".join(m[:2]))
@pytest.mark.parametrize("length", [15, 16, 17, 32])
def test_sequences_of_one_request(open_llm, model, length):
    def sequences(llm, n, temperature):
        params = SamplingParams(n=n, temperature=temperature, seed=4, max_tokens=20, logprobs=1, ignore_eos=True)
        return [(c.token_ids, c.logprobs) for c in llm.generate([ids(9, length)], params)[0].outputs]

    with open_llm(model) as llm:
        one, two, five = (sequences(llm, n, 1.0) for n in (1, 2, 5))
        assert five[:1] == one, "the first is what a request of its own gives"
        assert five[:2] == two, "each is the same whatever n is"
        assert len({tuple(tokens) for tokens, _ in five}) == 5, "and they differ"
        assert sequences(llm, 3, 0.0) == sequences(llm, 1, 0.0) * 3, "greedy ones are all alike"
    # Fewer seats than sequences, copies of shared pages that run out, several threads.
    tight = {"max_num_seqs": 3, "max_num_batched_tokens": 5, "kv_cache_tokens": 64, "enable_prefix_caching": True}
    for changes in ({"max_num_seqs": 1}, tight, {"num_threads": 4}, {**tight, "max_num_seqs": 5}):
        with open_llm(model, **changes) as llm:
            assert sequences(llm, 5, 1.0) == five
            assert sequences(llm, 5, 1.0) == five
            idle_stats(llm)


def test_prompt_logprobs_do_not_depend_on_chunks_or_rows(open_llm):
    ask = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=2)
    found = []
    for seqs, chunk in ((1, 1), (1, 64), (3, 7), (4, 16), (64, 256)):
        with open_llm(SIMPLE, max_num_seqs=seqs, max_num_batched_tokens=chunk) as llm:
            found.append(llm.generate([ids(3, 70)], ask)[0].prompt_logprobs)
    assert all(other == found[0] for other in found)
    assert found[0][0] is None and len(found[0]) == 70


def test_every_instruction_set_level_is_invariant(open_llm):
    from fastllm import DeviceError

    tried = 0
    for level in ("reference", "cpu:scalar", "cpu:avx2", "cpu:avx512", "cpu:vnni", "cpu:bf16"):
        try:
            with open_llm(RICH, device=level) as llm:
                expected = run_alone(llm)
        except DeviceError:
            continue  # this machine has no such level
        tried += 1
        crowd = {"kv_cache_tokens": 144, "max_num_seqs": 9, "max_num_batched_tokens": 13}
        with open_llm(RICH, device=level, num_threads=2, enable_prefix_caching=True, **crowd) as llm:
            assert run_together(llm, NAMES, 6) == expected, level
    assert tried >= 2
