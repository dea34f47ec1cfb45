"""Every family: config.json and names -> spec and slots. The numpy decoder that runs them agrees with transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import (
    CASES,
    Case,
    make_model,
    make_vision_model,
    prompt_ids,
    reference_logits,
    save,
    settle_rope,
    to_v4,
)
from stand_in import Weights, run

from fastllm.checkpoint.loader import LoadPlan, load


@pytest.fixture(scope="module", params=CASES, ids=lambda c: c.name)
def saved(request: Any, tmp_path_factory: Any) -> tuple[Case, Any, Path]:
    case = request.param
    model = make_model(case)
    return case, model, save(model, tmp_path_factory.mktemp(case.name))


def _logits(plan: LoadPlan, ids: list[int]) -> np.ndarray:
    weights = Weights(plan.spec)
    plan.fill(weights)
    return run(plan.spec, weights, ids)


def test_logits_of_the_spec_are_those_of_transformers(saved: tuple[Case, Any, Path]) -> None:
    case, model, folder = saved
    settle_rope(model, case)
    ids = prompt_ids(case)
    expected = reference_logits(model, ids).numpy()
    got = _logits(load(folder, max_model_len=case.max_model_len), ids)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=2e-4)


def _describe(spec: Any) -> Any:
    """A spec as plain data, whatever class holds it."""
    if isinstance(spec, (list, tuple)):
        return [_describe(item) for item in spec]
    fields = {
        "ModelSpec": ["hidden_size", "vocab_size", "max_position", "embedding_scale", "final_softcap",
                      "tied_embeddings", "final_norm", "ropes", "layers"],
        "LayerSpec": ["attention", "ffn", "moe", "attention_norm", "attention_post_norm", "ffn_norm",
                      "ffn_post_norm", "qk_norm"],
        "AttentionSpec": ["num_heads", "num_kv_heads", "head_dim", "scale", "window", "softcap", "has_qkv_bias",
                          "has_output_bias", "has_sinks", "qk_norm", "rope_idx"],
        "NormSpec": ["eps", "weight_offset"],
        "RopeSpec": ["inv_freq", "scale"],
        "DenseFfnSpec": ["ffn_dim"],
        "MoeSpec": ["num_experts", "experts_per_token", "ffn_dim", "score", "renormalize", "shared_ffn_dim"],
    }.get(type(spec).__name__)  # fmt: skip
    return spec if fields is None else {name: _describe(getattr(spec, name)) for name in fields}


def test_config_of_transformers_4_gives_the_same_spec(saved: tuple[Case, Any, Path], tmp_path: Path) -> None:
    case, _, folder = saved
    new = json.loads((folder / "config.json").read_text())
    (tmp_path / "model.safetensors").hardlink_to(folder / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(to_v4(new)))
    expected = load(folder, max_model_len=case.max_model_len)
    got = load(tmp_path, max_model_len=case.max_model_len)
    assert _describe(got.spec) == _describe(expected.spec)
    assert got.dtype == expected.dtype == "float32"


@pytest.mark.parametrize("name", ["mixtral", "qwen2-moe", "qwen3-moe"])
def test_fused_expert_tensors_load_like_single_ones(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    case = next(c for c in CASES if c.name == name)
    model = make_model(case)
    single = save(model, tmp_path / "single")
    plan = load(single, max_model_len=case.max_model_len)
    ids = prompt_ids(case)[:7]
    expected = _logits(plan, ids)

    fused = tmp_path / "fused"
    fused.mkdir()
    (fused / "config.json").write_bytes((single / "config.json").read_bytes())
    kept = {n: t for n, t in load_file(single / "model.safetensors").items() if ".experts." not in n}
    kept = {n.replace("block_sparse_moe", "mlp"): t for n, t in kept.items()}
    experts = {n: p.detach().clone() for n, p in model.state_dict().items() if ".experts." in n}
    save_file({**kept, **experts}, fused / "model.safetensors")
    assert np.array_equal(_logits(load(fused, max_model_len=case.max_model_len), ids), expected)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_language_model_of_a_vision_checkpoint_loads(prefix: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    case = next(c for c in CASES if c.name == "gemma3")
    model = make_vision_model()
    save(model, tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = {n.replace("language_model.model.", prefix): t for n, t in load_file(path).items()}
    save_file(tensors, path)
    plan = load(tmp_path, max_model_len=case.max_model_len)
    assert plan.ignored and all("language_model" not in name for name in plan.ignored)
    ids = prompt_ids(case)
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0].numpy()
    np.testing.assert_allclose(_logits(plan, ids), expected, rtol=1e-4, atol=2e-4)


def test_tied_checkpoint_with_a_copy_of_the_head_loads(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    case = next(c for c in CASES if c.name == "qwen2")
    save(make_model(case), tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, path)
    assert load(tmp_path).ignored == ["lm_head.weight"]
