"""Moved scales leave what a layer computes as it was, for every architecture that can move them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from checkpoints import CASES, Case, make_model, save

from fastllm.quantize.equalize import apply, matrix, pairs_of
from fastllm.quantize.layer import Layer
from fastllm.quantize.settings import Scheme
from fastllm.quantize.source import ModelSource

NAMES = ("llama-mqa-tied-bias", "qwen2", "phi3", "gemma3", "olmo2", "mixtral", "qwen2-moe", "qwen3-moe", "gpt-oss")


@torch.no_grad()
@pytest.mark.parametrize("case", [c for c in CASES if c.name in NAMES], ids=lambda c: c.name)
def test_a_layer_computes_the_same_with_moved_scales(case: Case, tmp_path: Path) -> None:
    save(make_model(case), tmp_path)
    source = ModelSource(tmp_path)
    spec = source.spec.layers[1]
    slots = {slot.split(".", 2)[2]: source.read(slot, torch.device("cpu")) for slot in source.slots_of(1)}
    layer = Layer(spec, source.spec.ropes[spec.attention.rope_idx], slots)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 20, source.spec.hidden_size, generator=generator)
    before = layer.forward(x)
    # Norms stored in bfloat16: their rounding must not show either.
    pairs = pairs_of(layer, lambda slot, expert: Scheme(4, 32, True), lambda slot: torch.bfloat16)
    assert len(pairs) >= 1
    for pair in pairs:
        width = matrix(layer, pair.readers[0]).shape[-1]
        scales = torch.exp(0.5 * torch.randn(width, generator=generator))
        if pair.tie > 1:  # one scale for the channels that heads of a group share
            heads = scales.reshape(-1, pair.tie, pair.head_dim)
            scales = heads[:, :1].expand_as(heads).reshape(-1)
        old = matrix(layer, pair.readers[0]).clone()
        real = apply(layer, pair, scales)
        assert torch.equal(matrix(layer, pair.readers[0]), old * real)
        assert torch.allclose(real, scales, rtol=0.02) or pair.changes[0].endswith("norm")
    assert (layer.forward(x) - before).abs().max() <= 2e-4 * before.abs().max()
