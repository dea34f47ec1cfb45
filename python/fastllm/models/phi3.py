"""Phi-3 and Phi-4 (text): Llama with fused qkv_proj and gate_up_proj, partial rotation, longrope."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from fastllm import _core
from fastllm.checkpoint.config import Config
from fastllm.models import common
from fastllm.models.fills import Fill, matrix, vector
from fastllm.models.rope import read_rope

# Names that early configs gave to longrope; their "yarn" is longrope too.
_ROPE_ALIASES = {"su": "longrope", "yarn": "longrope"}


def spec(config: Config, max_model_len: int | None) -> Any:
    config.require("hidden_act", ("silu",), "silu")
    config.require("attention_bias", (False,), False)
    sizes = common.read_sizes(config)
    layers = [
        _core.LayerSpec(
            attention=common.attention(sizes, window),
            ffn=common.dense(sizes.ffn, common.silu()),
            attention_norm=common.norm(sizes),
            ffn_norm=common.norm(sizes),
        )
        for window in common.uniform_window(config, sizes.layers)
    ]
    rope = read_rope(config, sizes.head_dim, partial=True, aliases=_ROPE_ALIASES)
    return common.model(config, sizes, [rope], layers, max_model_len)


def fills(config: Config, names: Collection[str]) -> Iterator[Fill]:
    sizes = common.read_sizes(config)
    yield from common.embedding_fills(sizes)
    for i in range(sizes.layers):
        to, source = f"layers.{i}.", f"model.layers.{i}."
        yield vector(f"{to}attention_norm", f"{source}input_layernorm.weight", sizes.hidden)
        qkv_dim = sizes.q_dim + 2 * sizes.kv_dim
        yield matrix(f"{to}qkv", f"{source}self_attn.qkv_proj.weight", qkv_dim, sizes.hidden)
        yield matrix(f"{to}o", f"{source}self_attn.o_proj.weight", sizes.hidden, sizes.q_dim)
        yield vector(f"{to}ffn_norm", f"{source}post_attention_layernorm.weight", sizes.hidden)
        yield matrix(f"{to}gate_up", f"{source}mlp.gate_up_proj.weight", 2 * sizes.ffn, sizes.hidden)
        yield matrix(f"{to}down", f"{source}mlp.down_proj.weight", sizes.hidden, sizes.ffn)


def ignored(config: Config) -> list[str]:
    return common.unused_head(common.read_sizes(config))
