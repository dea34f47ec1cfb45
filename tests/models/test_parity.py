"""fastllm in float32 against transformers in float32 (eager attention): log-probabilities and greedy tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import (
    CASES,
    Case,
    make_model,
    prompt_ids,
    reference_greedy,
    reference_logits,
    save,
    settle_rope,
    to_v4,
)

fastllm = pytest.importorskip("fastllm")

NUM_TOKENS = 64
# Two ways through transformers in float32 differ by up to 2.2e-5.
TOLERANCE = 1e-4


def _open(folder: Path, case: Case) -> Any:
    return fastllm.LLM(str(folder), dtype="float32", max_model_len=case.max_model_len, num_threads=1)


def _params(**values: Any) -> Any:
    return fastllm.SamplingParams(**{
        "temperature": 0, "max_tokens": NUM_TOKENS, "ignore_eos": True, "prompt_logprobs": 0, **values,
    })  # fmt: skip


def _prompt_logprobs(output: Any, ids: list[int]) -> list[float]:
    assert output.prompt_logprobs[0] is None and len(output.prompt_logprobs) == len(ids)
    return [output.prompt_logprobs[i][ids[i]].logprob for i in range(1, len(ids))]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_prompt_logprobs_and_greedy_tokens_are_those_of_transformers(case: Case, tmp_path: Path) -> None:
    model = make_model(case)
    save(model, tmp_path)
    settle_rope(model, case)
    ids = prompt_ids(case)
    rows = torch.log_softmax(reference_logits(model, ids).double(), -1)
    expected = [float(rows[i - 1, ids[i]]) for i in range(1, len(ids))]
    tokens, margin = reference_greedy(model, ids, NUM_TOKENS)
    assert margin > 10 * TOLERANCE, f"{case.name}: a greedy step is decided by {margin:.1e}; take another seed"

    with _open(tmp_path, case) as llm:
        output = llm.generate([ids], _params())[0]
    for i, (got, wanted) in enumerate(zip(_prompt_logprobs(output, ids), expected, strict=True), start=1):
        bound = TOLERANCE * max(1.0, abs(wanted))
        assert abs(got - wanted) <= bound, f"position {i}: {got} is not {wanted} (difference {got - wanted:.1e})"
    assert list(output.outputs[0].token_ids) == tokens


@pytest.mark.parametrize("name", ["llama-yarn-mscale", "gemma3", "phi3-longrope", "gpt-oss"])
def test_config_of_transformers_4_gives_the_same_bits(name: str, tmp_path: Path) -> None:
    case = next(c for c in CASES if c.name == name)
    save(make_model(case), tmp_path)
    ids = prompt_ids(case)
    results = []
    for rewrite in (lambda config: config, to_v4):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(rewrite(json.loads(path.read_text()))))
        with _open(tmp_path, case) as llm:
            results.append(_prompt_logprobs(llm.generate([ids], _params(max_tokens=1))[0], ids))
    assert results[0] == results[1]


@pytest.mark.parametrize("name", ["llama-dynamic", "phi3-longrope"])
def test_scaling_by_length_does_not_depend_on_the_prompt(name: str, tmp_path: Path) -> None:
    """A prompt within the original context has the same log-probabilities alone and as the head of a longer one."""
    case = next(c for c in CASES if c.name == name)
    save(make_model(case), tmp_path)
    ids = prompt_ids(case)
    with _open(tmp_path, case) as llm:
        outputs = llm.generate([ids, ids[:20]], _params(max_tokens=1))
    whole, head = (_prompt_logprobs(o, o_ids) for o, o_ids in zip(outputs, (ids, ids[:20]), strict=True))
    assert whole[:19] == head
