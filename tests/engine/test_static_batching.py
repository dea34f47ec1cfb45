"""scheduler="static": the same engine and texts, but nobody joins a batch that runs."""

import random

import pytest

from fastllm import LLM, InvalidRequestError, SamplingParams

SEED = 20261124


def heavy_tailed(count):
    """Prompts and output lengths as in W1 of `fastllm bench serve`."""
    rng = random.Random(SEED)
    prompts = [[rng.randint(40, 250) for _ in range(rng.randint(4, 60))] for _ in range(count)]
    lengths = [min(round(6 * rng.paretovariate(1.05)), 400) for _ in range(count)]
    return prompts, [SamplingParams(temperature=0.7, seed=i, max_tokens=n, ignore_eos=True) for i, n in
                     enumerate(lengths)]  # fmt: skip


def run(scheduler, prompts, params):
    with LLM(scheduler=scheduler, max_num_seqs=32, max_model_len=512, kv_cache_tokens=32 * 512) as llm:
        outputs = llm.generate(prompts, params)
        return [output.outputs[0].token_ids for output in outputs], llm.info()["engine"]["num_steps"]


def test_same_texts_in_more_than_twice_the_steps():
    prompts, params = heavy_tailed(384)
    continuous, few = run("continuous", prompts, params)
    static, many = run("static", prompts, params)
    print(f"steps: continuous {few}, static {many}, ratio {many / few:.2f}")
    assert static == continuous
    assert many >= 2.5 * few


def test_an_unknown_scheduler_is_refused():
    with pytest.raises(InvalidRequestError, match="continuous, static"):
        LLM(scheduler="dynamic")
