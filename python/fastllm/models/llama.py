"""Llama 1 to 3, Mistral, Qwen2, Qwen3: one decoder, pre-norm, gated SiLU; the differences are the flags below."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from fastllm import _core
from fastllm.checkpoint.config import Config
from fastllm.models import common
from fastllm.models.fills import Fill, vector
from fastllm.models.rope import read_rope


@dataclass(frozen=True)
class Variant:
    bias: str  # which projections have one: "key" (as attention_bias says, qkv and output), "qkv", "none"
    window: str  # "none", "all" (sliding_window in every layer), "layers" (use_sliding_window and layer types)
    qk_norm: bool = False
    head_dim: int | None = None  # when config.json has none; else E / H


VARIANTS = {
    "LlamaForCausalLM": Variant(bias="key", window="none"),
    "MistralForCausalLM": Variant(bias="none", window="all"),
    "Qwen2ForCausalLM": Variant(bias="qkv", window="layers"),
    "Qwen3ForCausalLM": Variant(bias="key", window="layers", qk_norm=True, head_dim=128),
}


def sizes_of(config: Config) -> common.Sizes:
    head_dim = VARIANTS[config.architecture].head_dim
    return common.read_sizes(config, defaults={"head_dim": head_dim} if head_dim else None)


def biases(config: Config) -> tuple[bool, bool]:
    """(of q, k, v; of the output projection)"""
    kind = VARIANTS[config.architecture].bias
    if kind == "key":
        both = config.bool("attention_bias", default=False)
        return both, both
    if kind == "none":
        config.require("attention_bias", (False,), False)
    return kind == "qkv", False


def qwen_windows(config: Config, num_layers: int) -> list[int]:
    """Qwen2 and Qwen3: windows from layer max_window_layers on, if use_sliding_window."""
    if not config.bool("use_sliding_window", default=False):
        return [0] * num_layers
    first = config.int("max_window_layers", default=28)
    default = ["sliding_attention" if i >= first else "full_attention" for i in range(num_layers)]
    return common.windows(config, common.layer_types(config, num_layers, default), default=4096)


def windows(config: Config, num_layers: int) -> list[int]:
    kind = VARIANTS[config.architecture].window
    if kind == "layers":
        return qwen_windows(config, num_layers)
    return common.uniform_window(config, num_layers, default=4096) if kind == "all" else [0] * num_layers


def spec(config: Config, max_model_len: int | None) -> Any:
    config.require("hidden_act", ("silu",), "silu")
    config.require("mlp_bias", (False,), False)
    sizes = sizes_of(config)
    qkv_bias, output_bias = biases(config)
    qk_norm = _core.QkNorm.PER_HEAD if VARIANTS[config.architecture].qk_norm else _core.QkNorm.NONE
    layers = [
        _core.LayerSpec(
            attention=common.attention(
                sizes, window, has_qkv_bias=qkv_bias, has_output_bias=output_bias, qk_norm=qk_norm
            ),
            ffn=common.dense(sizes.ffn, common.silu()),
            attention_norm=common.norm(sizes),
            ffn_norm=common.norm(sizes),
            qk_norm=common.norm(sizes),
        )
        for window in windows(config, sizes.layers)
    ]
    return common.model(config, sizes, [read_rope(config, sizes.head_dim)], layers, max_model_len)


def fills(config: Config, names: Collection[str]) -> Iterator[Fill]:
    sizes = sizes_of(config)
    qkv_bias, output_bias = biases(config)
    yield from common.embedding_fills(sizes)
    for i in range(sizes.layers):
        to, source = f"layers.{i}.", f"model.layers.{i}."
        yield vector(f"{to}attention_norm", f"{source}input_layernorm.weight", sizes.hidden)
        yield from common.attention_fills(sizes, to, f"{source}self_attn.", qkv_bias=qkv_bias, output_bias=output_bias)
        if VARIANTS[config.architecture].qk_norm:
            yield vector(f"{to}q_norm", f"{source}self_attn.q_norm.weight", sizes.head_dim)
            yield vector(f"{to}k_norm", f"{source}self_attn.k_norm.weight", sizes.head_dim)
        yield vector(f"{to}ffn_norm", f"{source}post_attention_layernorm.weight", sizes.hidden)
        yield from common.gated_fills((f"{to}gate_up", f"{to}down"), f"{source}mlp.", sizes.ffn, sizes.hidden)


def ignored(config: Config) -> list[str]:
    return common.unused_head(sizes_of(config))
