"""Qwen2-MoE (with a shared expert behind a sigmoid gate) and Qwen3-MoE (with q/k norms); some layers may be dense."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from fastllm import _core
from fastllm.checkpoint.config import Config
from fastllm.models import common
from fastllm.models.fills import Fill, matrix, vector
from fastllm.models.moe import expert_fills
from fastllm.models.rope import read_rope


def is_qwen3(config: Config) -> bool:
    return config.architecture == "Qwen3MoeForCausalLM"


def num_experts(config: Config) -> int:
    return int(config.int("num_experts", "num_local_experts", min=0, max=65536))


def moe_layers(config: Config, num_layers: int) -> list[bool]:
    """Layer i routes unless it is listed in mlp_only_layers or skipped by decoder_sparse_step."""
    step = config.int("decoder_sparse_step", min=1, default=1)
    listed = config.ints("mlp_only_layers", 0, common.MAX_LAYERS) if config.has("mlp_only_layers") else []
    has_experts = num_experts(config) > 0
    return [has_experts and i not in listed and (i + 1) % step == 0 for i in range(num_layers)]


def biases(config: Config) -> tuple[bool, bool]:
    if is_qwen3(config):
        both = config.bool("attention_bias", default=False)
        return both, both
    return config.bool("qkv_bias", default=True), False


def windows(config: Config, num_layers: int) -> list[int]:
    if not config.bool("use_sliding_window", default=False):
        return [0] * num_layers
    if is_qwen3(config):
        return common.windows(config, ["sliding_attention"] * num_layers, default=4096)
    last = config.int("max_window_layers", default=28)
    default = ["sliding_attention" if (i + 1) % 2 and i < last else "full_attention" for i in range(num_layers)]
    return common.windows(config, common.layer_types(config, num_layers, default), default=4096)


def shared_dim(config: Config) -> int:
    return 0 if is_qwen3(config) else int(config.int("shared_expert_intermediate_size", min=1, max=common.MAX_SIZE))


def moe_spec(config: Config) -> Any:
    return _core.MoeSpec(
        num_experts=num_experts(config),
        experts_per_token=config.int("num_experts_per_tok", min=1, max=num_experts(config)),
        ffn_dim=config.int("moe_intermediate_size", min=1, max=common.MAX_SIZE),
        activation=common.silu(),
        score=_core.RouteScore.SOFTMAX,
        renormalize=config.bool("norm_topk_prob", default=False),
        shared_ffn_dim=shared_dim(config),
    )


def spec(config: Config, max_model_len: int | None) -> Any:
    config.require("hidden_act", ("silu",), "silu")
    sizes = common.read_sizes(config)
    qkv_bias, output_bias = biases(config)
    routed = moe_layers(config, sizes.layers)
    moe = moe_spec(config) if any(routed) else None
    qk_norm = _core.QkNorm.PER_HEAD if is_qwen3(config) else _core.QkNorm.NONE
    layers = [
        _core.LayerSpec(
            attention=common.attention(
                sizes, window, has_qkv_bias=qkv_bias, has_output_bias=output_bias, qk_norm=qk_norm
            ),
            ffn=None if is_routed else common.dense(sizes.ffn, common.silu()),
            moe=moe if is_routed else None,
            attention_norm=common.norm(sizes),
            ffn_norm=common.norm(sizes),
            qk_norm=common.norm(sizes),
        )
        for is_routed, window in zip(routed, windows(config, sizes.layers), strict=True)
    ]
    return common.model(config, sizes, [read_rope(config, sizes.head_dim)], layers, max_model_len)


def fills(config: Config, names: Collection[str]) -> Iterator[Fill]:
    sizes = common.read_sizes(config)
    qkv_bias, output_bias = biases(config)
    yield from common.embedding_fills(sizes)
    for i, is_routed in enumerate(moe_layers(config, sizes.layers)):
        to, source = f"layers.{i}.", f"model.layers.{i}."
        mlp = f"{source}mlp."
        yield vector(f"{to}attention_norm", f"{source}input_layernorm.weight", sizes.hidden)
        yield from common.attention_fills(sizes, to, f"{source}self_attn.", qkv_bias=qkv_bias, output_bias=output_bias)
        if is_qwen3(config):
            yield vector(f"{to}q_norm", f"{source}self_attn.q_norm.weight", sizes.head_dim)
            yield vector(f"{to}k_norm", f"{source}self_attn.k_norm.weight", sizes.head_dim)
        yield vector(f"{to}ffn_norm", f"{source}post_attention_layernorm.weight", sizes.hidden)
        if not is_routed:
            yield from common.gated_fills((f"{to}gate_up", f"{to}down"), mlp, sizes.ffn, sizes.hidden)
            continue
        experts, ffn_dim = num_experts(config), config.int("moe_intermediate_size")
        yield matrix(f"{to}router", f"{mlp}gate.weight", experts, sizes.hidden)
        yield from expert_fills(to, mlp, names, experts, ffn_dim, sizes.hidden)
        if shared_dim(config):
            slots = f"{to}shared.gate_up", f"{to}shared.down"
            yield from common.gated_fills(slots, f"{mlp}shared_expert.", shared_dim(config), sizes.hidden)
            yield matrix(f"{to}shared_gate", f"{mlp}shared_expert_gate.weight", 1, sizes.hidden)


def ignored(config: Config) -> list[str]:
    return common.unused_head(common.read_sizes(config))
