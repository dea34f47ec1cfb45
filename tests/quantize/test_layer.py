"""The torch layers that calibration runs are those of the native decoder, for every architecture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import CASES, Case, make_model, prompt_ids, save

from fastllm.demo import DEMO_MODEL
from fastllm.evaluation.scoring import ScoredModel
from fastllm.quantize import layer
from fastllm.quantize.layer import Layer, rms_norm
from fastllm.quantize.source import ModelSource

CPU = torch.device("cpu")


@torch.no_grad()
def torch_logits(folder: Path, ids: list[int]) -> torch.Tensor:
    source = ModelSource(folder)
    spec = source.spec
    x = source.embedding_rows(ids).unsqueeze(0)
    for i, layer_spec in enumerate(spec.layers):
        slots = {slot.split(".", 2)[2]: source.read(slot, CPU) for slot in source.slots_of(i)}
        x = Layer(layer_spec, spec.ropes[layer_spec.attention.rope_idx], slots).forward(x)
    x = rms_norm(x, source.read("final_norm", CPU), spec.final_norm)
    logits = x[0] @ source.read("embed" if spec.tied_embeddings else "lm_head", CPU).T
    return spec.final_softcap * torch.tanh(logits / spec.final_softcap) if spec.final_softcap > 0 else logits


def native_logits(folder: Path, ids: list[int]) -> torch.Tensor:
    with ScoredModel(folder, dtype="float32", device="reference", num_threads=1, window=len(ids)) as model:
        return torch.from_numpy(np.concatenate([rows.copy() for rows in model.rows(ids)]))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_logits_are_those_of_the_reference_backend(case: Case, tmp_path: Path) -> None:
    save(make_model(case), tmp_path)
    ids = prompt_ids(case)
    expected, got = native_logits(tmp_path, ids), torch_logits(tmp_path, ids)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_logits_of_the_demo_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "SCORES", 1)  # attention for one query at a time, as long sequences have it for a few
    ids = list(range(100, 180))
    expected, got = native_logits(DEMO_MODEL, ids), torch_logits(DEMO_MODEL, ids)
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
