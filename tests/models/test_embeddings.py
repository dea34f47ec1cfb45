"""Embeddings in float32 against the hidden states of transformers: what its base model returns, pooled here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import CASES, Case, make_model, prompt_ids, save, settle_rope

fastllm = pytest.importorskip("fastllm")

# Of the largest element; two ways through transformers in float32 differ by up to 2.2e-5.
TOLERANCE = 1e-4


def _expected(model: Any, ids: list[int], pooling: str) -> np.ndarray:
    with torch.no_grad():
        states = model.model(torch.tensor([ids])).last_hidden_state[0].double().numpy()
    return states[-1] if pooling == "last" else states.mean(axis=0)


# A plain one, one with a norm of 1 + w and scaled embeddings, one without pre-norms, a mixture of experts.
@pytest.mark.parametrize(
    "case", [c for c in CASES if c.name in ("llama-gqa", "gemma2", "olmo2", "qwen3-moe")], ids=lambda c: c.name
)
def test_embeddings_are_the_pooled_hidden_states_of_transformers(case: Case, tmp_path: Path) -> None:
    model = make_model(case)
    save(model, tmp_path)
    settle_rope(model, case)
    prompts = [prompt_ids(case, seed) for seed in (1, 2, 3)]
    with fastllm.LLM(str(tmp_path), dtype="float32", max_model_len=case.max_model_len, num_threads=1) as llm:
        for pooling in ("last", "mean"):
            outputs = llm.embed(prompts, pooling=pooling, normalize=False)
            units = llm.embed(prompts, pooling=pooling, dimensions=8)
            for ids, output, unit in zip(prompts, outputs, units, strict=True):
                expected = _expected(model, ids, pooling)
                assert output.prompt_token_ids == ids
                assert output.embedding.dtype == np.float32
                assert np.abs(output.embedding - expected).max() <= TOLERANCE * np.abs(expected).max()
                short = expected[:8] / np.linalg.norm(expected[:8])
                assert np.abs(unit.embedding - short).max() <= TOLERANCE
