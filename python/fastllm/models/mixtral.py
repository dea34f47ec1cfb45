"""Mixtral: Mistral's attention, and in each layer a mixture of experts routed by a renormalised softmax."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from fastllm import _core
from fastllm.checkpoint.config import Config
from fastllm.models import common
from fastllm.models.fills import Fill, matrix, vector
from fastllm.models.moe import expert_fills
from fastllm.models.rope import read_rope


def sizes_of(config: Config) -> common.Sizes:
    return common.read_sizes(config, defaults={"rms_norm_eps": 1e-5})


def num_experts(config: Config) -> int:
    return int(config.int("num_local_experts", "num_experts", min=1, max=65536))


def spec(config: Config, max_model_len: int | None) -> Any:
    config.require("hidden_act", ("silu",), "silu")
    config.require("attention_bias", (False,), False)
    sizes = sizes_of(config)
    moe = _core.MoeSpec(
        num_experts=num_experts(config),
        experts_per_token=config.int("num_experts_per_tok", min=1, max=num_experts(config)),
        ffn_dim=sizes.ffn,
        activation=common.silu(),
        score=_core.RouteScore.SOFTMAX,
        renormalize=True,
    )
    layers = [
        _core.LayerSpec(
            attention=common.attention(sizes, window),
            moe=moe,
            attention_norm=common.norm(sizes),
            ffn_norm=common.norm(sizes),
        )
        for window in common.uniform_window(config, sizes.layers)
    ]
    rope = read_rope(config, sizes.head_dim, default_theta=1e6)
    return common.model(config, sizes, [rope], layers, max_model_len)


def fills(config: Config, names: Collection[str]) -> Iterator[Fill]:
    sizes, experts = sizes_of(config), num_experts(config)
    yield from common.embedding_fills(sizes)
    for i in range(sizes.layers):
        to, source = f"layers.{i}.", f"model.layers.{i}."
        yield vector(f"{to}attention_norm", f"{source}input_layernorm.weight", sizes.hidden)
        yield from common.attention_fills(sizes, to, f"{source}self_attn.")
        yield vector(f"{to}ffn_norm", f"{source}post_attention_layernorm.weight", sizes.hidden)
        block = f"{source}mlp." if f"{source}mlp.gate.weight" in names else f"{source}block_sparse_moe."
        yield matrix(f"{to}router", f"{block}gate.weight", experts, sizes.hidden)
        yield from expert_fills(to, block, names, experts, sizes.ffn, sizes.hidden, projections=("w1", "w3", "w2"))


def ignored(config: Config) -> list[str]:
    return common.unused_head(sizes_of(config))
