"""LLM.embed and AsyncLLM.embed: the same bits in any company, checks, pages (values: tests/models)."""

import asyncio
import random

import numpy as np
import pytest

from fastllm import LLM, AsyncLLM, InvalidRequestError, SamplingParams

SMALL = {"max_model_len": 256, "max_num_seqs": 8, "kv_cache_tokens": 2048, "num_threads": 1}
RNG = random.Random(7)
PROMPTS = [[RNG.randrange(10, 250) for _ in range(length)] for length in (1, 2, 15, 16, 17, 40, 100, 255, 256)]
POOLINGS = ("last", "mean")


def values(outputs):
    return [output.embedding.tobytes() for output in outputs]


async def until_idle(llm):
    """Fails unless all pages are given back soon."""
    for _ in range(500):
        stats = llm.stats()
        if not stats["num_running"] + stats["num_waiting"] + stats["num_pages_referenced"]:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(stats)


@pytest.fixture(scope="module")
def alone():
    """Each prompt by itself, in one piece, without a prefix cache."""
    with LLM(**SMALL, enable_prefix_caching=False) as llm:
        return {
            pooling: [llm.embed(p, pooling=pooling)[0].embedding.tobytes() for p in PROMPTS] for pooling in POOLINGS
        }


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("chunk", [None, 8, 33], ids=lambda c: f"chunk={c}")
def test_neither_company_nor_chunks_nor_cache_change_a_bit(alone, pooling, chunk):
    with LLM(**SMALL, max_num_batched_tokens=chunk) as llm:
        assert values(llm.embed(PROMPTS, pooling=pooling)) == alone[pooling]
        assert values(llm.embed(PROMPTS, pooling=pooling)) == alone[pooling], "with a warm prefix cache"
        llm.generate(PROMPTS[:-2], SamplingParams(max_tokens=4))
        assert values(llm.embed(PROMPTS[::-1], pooling=pooling)) == alone[pooling][::-1]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_preemption_by_growing_sequences_changes_no_bit(alone, pooling):
    async def main():
        # Generating sequences need pages that long embeddings hold: those are sent away half read, and come back.
        async with AsyncLLM(**{**SMALL, "kv_cache_tokens": 512}, max_num_batched_tokens=8) as llm:
            params = SamplingParams(max_tokens=200, ignore_eos=True)

            async def generate(i):
                async for _ in llm.generate([i + 1], params):
                    pass

            tasks = [asyncio.create_task(generate(i)) for i in range(3)]
            num_preemptions = 0
            while not all(task.done() for task in tasks):
                found = await asyncio.gather(*(llm.embed(p, pooling=pooling, priority=1) for p in PROMPTS))
                assert values(found) == alone[pooling]
                num_preemptions += sum(output.metrics.num_preemptions for output in found)
            assert num_preemptions > 0
            await until_idle(llm)

    asyncio.run(main())


def test_the_cache_is_shared_with_generation():
    with LLM(**SMALL) as llm:
        prompt = PROMPTS[6]
        llm.embed(prompt, pooling="mean")
        assert llm.generate([prompt], SamplingParams(max_tokens=1))[0].metrics.num_cached_tokens == 96
        assert llm.embed(prompt)[0].metrics.num_cached_tokens == 96
        assert llm.embed(prompt, pooling="mean")[0].metrics.num_cached_tokens == 0
        assert llm.embed(prompt, cache_salt="other")[0].metrics.num_cached_tokens == 0


def test_dimensions_and_normalization():
    with LLM(**SMALL) as llm:
        (raw,) = llm.embed("The os module", normalize=False)
        (unit,) = llm.embed("The os module")
        (short,) = llm.embed("The os module", dimensions=16)
        size = llm.info()["hidden_size"]
        assert raw.embedding.shape == unit.embedding.shape == (size,) and raw.embedding.dtype == np.float32
        assert raw.prompt == "The os module" and raw.metrics.num_prompt_tokens == len(raw.prompt_token_ids)
        for found, wanted in ((unit, raw.embedding), (short, raw.embedding[:16])):
            exact = wanted.astype(np.float64) / np.linalg.norm(wanted.astype(np.float64))
            assert np.abs(found.embedding - exact).max() <= 2**-23
        assert llm.embed([]) == []


@pytest.mark.parametrize(
    ("prompt", "options", "name"),
    [
        ("a", {"pooling": "cls"}, "pooling"),
        ("a", {"pooling": None}, "pooling"),
        ("a", {"normalize": 1}, "normalize"),
        ("a", {"dimensions": 0}, "dimensions"),
        ("a", {"dimensions": 10**6}, "dimensions"),
        ("a", {"dimensions": True}, "dimensions"),
        ([], {}, "prompt"),
        ([10**6], {}, "prompt_token_ids"),
        ([1] * 257, {}, "257 tokens, max_model_len is 256"),
    ],
)
def test_wrong_arguments_are_refused_by_name(prompt, options, name):
    with LLM(**SMALL) as llm:
        with pytest.raises(InvalidRequestError, match=name):
            llm.embed([prompt], **options)
        assert len(llm.embed("fine")) == 1


def test_more_prompts_than_the_queue_holds():
    with LLM(**SMALL, max_queue=4) as llm:
        outputs = llm.embed([[i + 1, 2, 3] for i in range(60)])
        assert [output.prompt_token_ids[0] for output in outputs] == list(range(1, 61))


def test_a_cancelled_embedding_frees_its_pages():
    async def main():
        async with AsyncLLM(**SMALL) as llm:
            tasks = [asyncio.create_task(llm.embed(PROMPTS[-1])) for _ in range(20)]
            await asyncio.sleep(0.02)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await until_idle(llm)

    asyncio.run(main())
