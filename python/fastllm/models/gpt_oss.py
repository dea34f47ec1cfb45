"""gpt-oss: attention sinks, windows in every second layer, YaRN, and experts with biases and a clamped SwiGLU.

Experts are saved transposed, all in one tensor, with gate and up columns interleaved: [X, E, 2F] and [X, F, E]. In the
MXFP4 form (..._blocks) they are not transposed: [X, 2F, E] and [X, E, F].
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from fastllm import _core
from fastllm.checkpoint.config import Config
from fastllm.models import common
from fastllm.models.fills import Fill, matrix, stacked, stacked_vector, vector
from fastllm.models.rope import read_rope

# The rotation of a config that names none.
_ROPE = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip


def sizes_of(config: Config) -> common.Sizes:
    return common.read_sizes(config, defaults={"head_dim": 64, "num_key_value_heads": 8, "rms_norm_eps": 1e-5})


def num_experts(config: Config) -> int:
    return int(config.int("num_local_experts", "num_experts", min=1, max=65536))


def spec(config: Config, max_model_len: int | None) -> Any:
    config.require("hidden_act", ("silu",), "silu")
    sizes = sizes_of(config)
    bias = config.bool("attention_bias", default=True)
    moe = _core.MoeSpec(
        num_experts=num_experts(config),
        experts_per_token=config.int("num_experts_per_tok", "experts_per_token", min=1, max=num_experts(config)),
        ffn_dim=sizes.ffn,
        activation=_core.ActivationSpec(
            kind=_core.Activation.CLAMPED_SWIGLU,
            alpha=config.float("swiglu_alpha", min=1e-3, max=1e3, default=1.702),
            limit=config.float("swiglu_limit", min=1e-3, max=1e6, default=7.0),
        ),
        score=_core.RouteScore.SOFTMAX_OF_TOP_K,
        has_router_bias=True,
        has_expert_bias=True,
    )
    default = ["full_attention" if i % 2 else "sliding_attention" for i in range(sizes.layers)]
    types = common.layer_types(config, sizes.layers, default)
    layers = [
        _core.LayerSpec(
            attention=common.attention(sizes, window, has_qkv_bias=bias, has_output_bias=bias, has_sinks=True),
            moe=moe,
            attention_norm=common.norm(sizes),
            ffn_norm=common.norm(sizes),
        )
        for window in common.windows(config, types, default=128)
    ]
    rope = read_rope(config, sizes.head_dim, default_theta=150000.0, default=_ROPE)
    return common.model(config, sizes, [rope], layers, max_model_len)


def fills(config: Config, names: Collection[str]) -> Iterator[Fill]:
    sizes, experts = sizes_of(config), num_experts(config)
    bias = config.bool("attention_bias", default=True)
    yield from common.embedding_fills(sizes)
    for i in range(sizes.layers):
        to, source = f"layers.{i}.", f"model.layers.{i}."
        mlp = f"{source}mlp."
        yield vector(f"{to}attention_norm", f"{source}input_layernorm.weight", sizes.hidden)
        yield from common.attention_fills(sizes, to, f"{source}self_attn.", qkv_bias=bias, output_bias=bias)
        yield vector(f"{to}sinks", f"{source}self_attn.sinks", sizes.heads)
        yield vector(f"{to}ffn_norm", f"{source}post_attention_layernorm.weight", sizes.hidden)
        yield matrix(f"{to}router", f"{mlp}router.weight", experts, sizes.hidden)
        yield vector(f"{to}router_bias", f"{mlp}router.bias", experts)
        gate_up, down = f"{mlp}experts.gate_up_proj", f"{mlp}experts.down_proj"
        for slot, source_name, rows, cols in (
            ("gate_up", gate_up, 2 * sizes.ffn, sizes.hidden), ("down", down, sizes.hidden, sizes.ffn),
        ):  # fmt: skip
            is_mxfp4 = f"{source_name}_blocks" in names
            yield from stacked(
                f"{to}experts.{slot}", f"{source_name}_blocks" if is_mxfp4 else source_name, experts, rows, cols,
                transposed=not is_mxfp4, interleaved=slot == "gate_up",
            )  # fmt: skip
        yield from stacked_vector(
            f"{to}experts.gate_up_bias", f"{gate_up}_bias", experts, 2 * sizes.ffn, interleaved=True
        )
        yield from stacked_vector(f"{to}experts.down_bias", f"{down}_bias", experts, sizes.hidden)


def ignored(config: Config) -> list[str]:
    return common.unused_head(sizes_of(config))
