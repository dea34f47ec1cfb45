"""OLMo 2: no norm before a block but one after it, and q/k norms over all heads at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from fastllm import _core
from fastllm.checkpoint.config import Config
from fastllm.models import common
from fastllm.models.fills import Fill, vector
from fastllm.models.rope import read_rope


def sizes_of(config: Config) -> common.Sizes:
    return common.read_sizes(config, defaults={"rms_norm_eps": 1e-5})


def spec(config: Config, max_model_len: int | None) -> Any:
    config.require("hidden_act", ("silu",), "silu")
    sizes = sizes_of(config)
    bias = config.bool("attention_bias", default=False)
    layer = _core.LayerSpec(
        attention=common.attention(sizes, 0, has_qkv_bias=bias, has_output_bias=bias, qk_norm=_core.QkNorm.FULL),
        ffn=common.dense(sizes.ffn, common.silu()),
        attention_post_norm=common.norm(sizes),
        ffn_post_norm=common.norm(sizes),
        qk_norm=common.norm(sizes),
    )
    rope = read_rope(config, sizes.head_dim)
    return common.model(config, sizes, [rope], [layer] * sizes.layers, max_model_len)


def fills(config: Config, names: Collection[str]) -> Iterator[Fill]:
    sizes = sizes_of(config)
    bias = config.bool("attention_bias", default=False)
    yield from common.embedding_fills(sizes)
    for i in range(sizes.layers):
        to, source = f"layers.{i}.", f"model.layers.{i}."
        yield from common.attention_fills(sizes, to, f"{source}self_attn.", qkv_bias=bias, output_bias=bias)
        yield vector(f"{to}q_norm", f"{source}self_attn.q_norm.weight", sizes.q_dim)
        yield vector(f"{to}k_norm", f"{source}self_attn.k_norm.weight", sizes.kv_dim)
        yield vector(f"{to}attention_post_norm", f"{source}post_attention_layernorm.weight", sizes.hidden)
        yield from common.gated_fills((f"{to}gate_up", f"{to}down"), f"{source}mlp.", sizes.ffn, sizes.hidden)
        yield vector(f"{to}ffn_post_norm", f"{source}post_feedforward_layernorm.weight", sizes.hidden)


def ignored(config: Config) -> list[str]:
    return common.unused_head(sizes_of(config))
