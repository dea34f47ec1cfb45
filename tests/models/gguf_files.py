"""GGUF files of small models by the gguf package: names by its own table, values as its converter lays them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

ARCHITECTURES = {
    "LlamaForCausalLM": "llama", "MixtralForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3", "Qwen3MoeForCausalLM": "qwen3moe", "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3", "Phi3ForCausalLM": "phi3",
}  # fmt: skip
PROJECTIONS = {"w1": "gate", "w3": "up", "w2": "down", "gate_proj": "gate", "up_proj": "up", "down_proj": "down"}


def _interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """What the converter does to q and k of the llama architecture."""
    return (
        weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)
    )


def tensors_of(config: Any, saved: dict[str, torch.Tensor], arch: str) -> dict[str, np.ndarray]:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[arch.upper()], config.num_hidden_layers)
    found: dict[str, np.ndarray] = {}
    experts: dict[str, list[np.ndarray]] = {}
    for name, tensor in saved.items():
        value = tensor.float().numpy()
        if ".experts." in name:
            module, _, rest = name.partition(".experts.")
            block = module.split(".")[2]
            key = f"blk.{block}.ffn_{PROJECTIONS[rest.split('.')[1]]}_exps.weight"
            experts.setdefault(key, []).append((int(rest.split(".")[0]), value))  # type: ignore[arg-type]
            continue
        if arch == "llama" and ".q_proj." in name:
            value = _interleave(value, config.num_attention_heads)
        elif arch == "llama" and ".k_proj." in name:
            value = _interleave(value, config.num_key_value_heads)
        elif arch.startswith("gemma") and name.endswith("norm.weight"):
            value = value + 1
        new = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert new is not None, name
        found[new] = value
    for key, parts in experts.items():
        found[key] = np.stack([value for _, value in sorted(parts, key=lambda part: part[0])])  # type: ignore[index]
    return found


def metadata_of(w: Any, config: Any, arch: str) -> None:
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_block_count(config.num_hidden_layers)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(config.num_attention_heads)
    w.add_head_count_kv(config.num_key_value_heads)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    w.add_key_length(head_dim)
    w.add_value_length(head_dim)
    rope = config.rope_parameters
    if arch == "gemma3":
        w.add_sliding_window(config.sliding_window)
        rope = rope["full_attention"]
    if arch == "gemma2":
        w.add_attn_logit_softcapping(config.attn_logit_softcapping)
        w.add_final_logit_softcapping(config.final_logit_softcapping)
        w.add_sliding_window(config.sliding_window)
    if arch == "phi3":
        w.add_rope_dimension_count(int(head_dim * rope["partial_rotary_factor"]))
        w.add_sliding_window(config.sliding_window or 0)
        w.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    w.add_rope_freq_base(rope["rope_theta"])
    if rope["rope_type"] in ("linear", "yarn"):
        w.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        w.add_rope_scaling_factor(rope["factor"])
        if "original_max_position_embeddings" in rope:
            w.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if rope["rope_type"] == "longrope":
        for kind in ("long", "short"):
            w.add_tensor(f"rope_factors_{kind}.weight", np.array(rope[f"{kind}_factor"], np.float32))
    if rope["rope_type"] == "llama3":
        w.add_tensor("rope_freqs.weight", llama3_factors(rope, head_dim))
    num_experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
    if num_experts:
        w.add_expert_count(num_experts)
        w.add_expert_used_count(config.num_experts_per_tok)
        if arch == "qwen3moe":
            w.add_expert_feed_forward_length(config.moe_intermediate_size)


def llama3_factors(rope: dict[str, Any], dim: int) -> np.ndarray:
    """As the converter works them out: how much each frequency is divided."""
    low, high, old = rope["low_freq_factor"], rope["high_freq_factor"], rope["original_max_position_embeddings"]
    factors = []
    for freq in 1.0 / rope["rope_theta"] ** (np.arange(0, dim, 2) / dim):
        wavelength = 2 * np.pi / freq
        if wavelength < old / high:
            factors.append(1.0)
        elif wavelength > old / low:
            factors.append(rope["factor"])
        else:
            smooth = (old / wavelength - low) / (high - low)
            factors.append(1 / ((1 - smooth) / rope["factor"] + smooth))
    return np.array(factors, np.float32)


def write(path: Path, config: Any, saved: dict[str, torch.Tensor], kinds: dict[str, Any] | None = None) -> Path:
    """`kinds`: types of single tensors; F32 for the others."""
    arch = ARCHITECTURES[config.architectures[0]]
    w = gguf.GGUFWriter(path, arch)
    metadata_of(w, config, arch)
    for name, value in tensors_of(config, saved, arch).items():
        kind = (kinds or {}).get(name)
        if kind is None:
            w.add_tensor(name, np.ascontiguousarray(value))
        else:
            w.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path
