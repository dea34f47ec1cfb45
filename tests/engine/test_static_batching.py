"""scheduler="static": the same engine and texts, but nobody joins a batch that runs."""

import pytest

from fastllm import LLM, InvalidRequestError, SamplingParams
from fastllm.bench_serve.workloads import WORKLOADS, Sizes

SEED = 20261124


def run(scheduler, prompts, params):
    with LLM(scheduler=scheduler, max_num_seqs=32, max_model_len=512, kv_cache_tokens=32 * 512) as llm:
        outputs = llm.generate(prompts, params)
        return [output.outputs[0].token_ids for output in outputs], llm.info()["engine"]["num_steps"]


def test_same_texts_in_more_than_twice_the_steps():
    (workload,) = WORKLOADS["W1"](Sizes(max_model_len=512, num_requests=384, concurrency=32, seed=SEED))
    prompts = [planned.prompt for planned in workload.requests]
    params = [
        SamplingParams(temperature=0.7, seed=i, max_tokens=planned.max_tokens, ignore_eos=True)
        for i, planned in enumerate(workload.requests)
    ]
    continuous, few = run("continuous", prompts, params)
    static, many = run("static", prompts, params)
    print(f"steps: continuous {few}, static {many}, ratio {many / few:.2f}")
    assert static == continuous
    assert many >= 2.5 * few


def test_an_unknown_scheduler_is_refused():
    with pytest.raises(InvalidRequestError, match="continuous, static"):
        LLM(scheduler="dynamic")
