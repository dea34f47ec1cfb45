"""A GGUF file gives the spec and the weights of the Hugging Face folder that it was made from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import gguf_files
import numpy as np
import pytest
import torch
from checkpoints import CASES, Case, make_model, prompt_ids, save
from safetensors.torch import load_file, save_file
from stand_in import Weights, run
from test_spec import _describe

from fastllm.checkpoint.loader import load

NAMES = [
    "llama-gqa", "llama-mha", "llama-linear", "llama-yarn", "llama-llama3", "qwen2", "qwen3", "qwen3-moe", "mixtral",
    "gemma2", "gemma3", "phi3", "phi3-longrope",
]  # fmt: skip
CHANGES: dict[str, dict[str, Any]] = {
    # What GGUF has no key for, at the values that its readers take.
    "gemma2": {"query_pre_attn_scalar": 256}, "mixtral": {"sliding_window": None},
    "qwen3-moe": {"mlp_only_layers": []},
    "gemma3": {"query_pre_attn_scalar": 64, "sliding_window_pattern": 6, "num_hidden_layers": 7,
               "layer_types": None},
}  # fmt: skip


def _case(name: str) -> Case:
    case = next(case for case in CASES if case.name == name)
    return Case(name, case.config, case.model, {**case.values, **CHANGES.get(name, {})}, case.prompt_len)


def _filled(path: Path) -> tuple[Any, Weights]:
    plan = load(path, max_model_len=100)
    weights = Weights(plan.spec)
    plan.fill(weights, num_threads=2)
    return plan.spec, weights


def _close(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_close(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(_close, a, b))
    return bool(a == b or (isinstance(a, float) and a == pytest.approx(b, rel=1e-6)))


@pytest.mark.parametrize("name", NAMES)
def test_gguf_is_the_checkpoint_that_it_was_made_from(name: str, tmp_path: Path) -> None:
    model = make_model(_case(name))
    save(model, tmp_path / "hf")
    saved = load_file(tmp_path / "hf" / "model.safetensors")
    path = gguf_files.write(tmp_path / "model.gguf", model.config, saved)
    expected_spec, expected = _filled(tmp_path / "hf")
    spec, got = _filled(path)
    assert _close(_describe(spec), _describe(expected_spec))
    for part in ("matrices", "vectors"):
        for slot, values in getattr(expected, part).items():
            is_norm = name.startswith("gemma") and slot.endswith("norm")
            np.testing.assert_allclose(getattr(got, part)[slot], values, rtol=0, atol=3e-7 if is_norm else 0)


def test_folder_with_one_gguf_file_is_that_file(tmp_path: Path) -> None:
    model = make_model(_case("qwen3"))
    save(model, tmp_path / "hf")
    saved = load_file(tmp_path / "hf" / "model.safetensors")
    (tmp_path / "folder").mkdir()
    gguf_files.write(tmp_path / "folder" / "any.gguf", model.config, saved)
    assert _describe(load(tmp_path / "folder").spec) == _describe(load(tmp_path / "hf").spec)


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_quantized_tensors_run_as_their_dequantized_values(kind: str, tmp_path: Path) -> None:
    """Through rows that are put in order, stacked experts and blocks that end inside a piece."""
    case = _case("mixtral")
    case.values.update(hidden_size=64, intermediate_size=96)
    model = make_model(case)
    save(model, tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    number = gguf.GGMLQuantizationType[kind]
    wanted = [n for n, v in gguf_files.tensors_of(model.config, saved, "llama").items() if v.ndim >= 2]
    path = gguf_files.write(tmp_path / "model.gguf", model.config, saved, dict.fromkeys(wanted, number))
    for tensor in saved.values():
        if tensor.dim() == 2:
            packed = gguf.quants.quantize(tensor.numpy(), number)
            tensor.copy_(torch.from_numpy(gguf.quants.dequantize(packed, number).reshape(tensor.shape)))
    save_file(saved, tmp_path / "model.safetensors")
    _, expected = _filled(tmp_path)
    spec, got = _filled(path)
    for slot, values in expected.matrices.items():
        assert np.array_equal(got.matrices[slot], values), slot
    ids = prompt_ids(case)[:9]
    assert np.array_equal(run(spec, got, ids), run(spec, expected, ids))
