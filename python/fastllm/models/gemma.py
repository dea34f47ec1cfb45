"""Gemma 2 and Gemma 3 (text): norms of 1 + w before and after each block, scaled embeddings, windows that alternate.

Gemma 3 has q/k norms and rotates its windowed layers with a base of their own. Of Gemma3ForConditionalGeneration only
the language model is read.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from typing import Any

from fastllm import _core
from fastllm.checkpoint.config import Config
from fastllm.models import common
from fastllm.models.fills import Fill, vector
from fastllm.models.rope import Rope, read_rope

# Published Gemma 3 configs leave out what equals the defaults of its class.
_GEMMA3_DEFAULTS = {
    "vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
}  # fmt: skip
_GEMMA2_DEFAULTS = {"head_dim": 256, "num_key_value_heads": 4}
_VISION = [r"(model\.)?vision_tower\.", r"(model\.)?multi_modal_projector\."]


def is_gemma3(config: Config) -> bool:
    return config.architecture != "Gemma2ForCausalLM"


def text(config: Config) -> Config:
    """The config of the language model: nested where there is a vision tower."""
    if config.architecture != "Gemma3ForConditionalGeneration":
        return config
    nested = config.section("text_config")
    if nested is None:
        raise config.wrong("text_config", "is missing, expected the config of the language model")
    values = {"tie_word_embeddings": config.optional("tie_word_embeddings", True)}
    values |= {"max_position_embeddings": 131072, **nested.values, "architectures": config.values["architectures"]}
    return Config(values, config.where, nested.path)


def sizes_of(config: Config) -> common.Sizes:
    return common.read_sizes(config, tied=True, defaults=_GEMMA3_DEFAULTS if is_gemma3(config) else _GEMMA2_DEFAULTS)


def types_of(config: Config, num_layers: int) -> list[str]:
    """Every sixth layer of Gemma 3 and every second of Gemma 2 sees the whole context."""
    period = 2
    if is_gemma3(config):
        period = config.int("sliding_window_pattern", "_sliding_window_pattern", min=1, max=4096, default=6)
    default = ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(num_layers)]
    return common.layer_types(config, num_layers, default)


def ropes_of(config: Config, head_dim: int) -> list[Rope]:
    """[of layers that see everything, of windowed layers]"""
    if not is_gemma3(config):
        return [read_rope(config, head_dim)]
    whole = read_rope(config, head_dim, default_theta=1e6, layer_type="full_attention", max_is_scaled=True)
    # v4 form: rope_theta and rope_scaling are those of the global layers; the local base has a key of its own.
    if config.optional("rope_scaling") or config.section("rope_parameters") is None:
        local = {
            "rope_theta": config.float("rope_local_base_freq", min=1.0001, max=1e12, default=10000.0),
            "max_position_embeddings": config.values.get("max_position_embeddings"),
            "architectures": config.values["architectures"],
        }
        return [whole, read_rope(Config(local, config.where, config.path), head_dim)]
    return [whole, read_rope(config, head_dim, default_theta=1e4, layer_type="sliding_attention")]


def spec(config: Config, max_model_len: int | None) -> Any:
    config = text(config)
    # hidden_activation replaced hidden_act, which says "gelu" in old configs and is not read by anybody.
    config.require("hidden_activation", ("gelu_pytorch_tanh",), "gelu_pytorch_tanh")
    config.require("use_bidirectional_attention", (False,), False)
    sizes = sizes_of(config)
    gemma3 = is_gemma3(config)
    bias = config.bool("attention_bias", default=False)
    softcaps = {} if gemma3 else {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    softcap, final_softcap = (
        # An explicit null switches it off; an absent key means the default of the class.
        config.float(key, min=1e-3, max=1e6, default=0.0 if key in config.values else softcaps.get(key, 0.0))
        for key in ("attn_logit_softcapping", "final_logit_softcapping")
    )
    types = types_of(config, sizes.layers)
    norm = common.norm(sizes, 1.0)
    activation = _core.ActivationSpec(kind=_core.Activation.GELU_TANH)
    layers = [
        _core.LayerSpec(
            attention=common.attention(
                sizes, window,
                scale=config.float("query_pre_attn_scalar", min=1e-3, max=1e6, default=256.0) ** -0.5,
                softcap=softcap, has_qkv_bias=bias, has_output_bias=bias,
                qk_norm=_core.QkNorm.PER_HEAD if gemma3 else _core.QkNorm.NONE,
                rope_idx=1 if gemma3 and kind == "sliding_attention" else 0,
            ),
            ffn=common.dense(sizes.ffn, activation),
            attention_norm=norm, attention_post_norm=norm, ffn_norm=norm, ffn_post_norm=norm, qk_norm=norm,
        )
        for kind, window in zip(types, common.windows(config, types, default=4096), strict=True)
    ]  # fmt: skip
    ropes = ropes_of(config, sizes.head_dim)
    return common.model(
        config, sizes, ropes, layers, max_model_len, norm_offset=1.0, embedding_scale=math.sqrt(sizes.hidden),
        final_softcap=final_softcap,
    )  # fmt: skip


def prefixes(config: Config, names: Collection[str]) -> tuple[str, str]:
    """(of the decoder, of lm_head): the language model of a vision model is saved under one of two names."""
    if config.architecture != "Gemma3ForConditionalGeneration":
        return "model.", ""
    if "model.language_model.embed_tokens.weight" in names:
        return "model.language_model.", ""
    return "language_model.model.", "language_model."


def fills(config: Config, names: Collection[str]) -> Iterator[Fill]:
    body, head = prefixes(config, names)
    config = text(config)
    sizes = sizes_of(config)
    bias = config.bool("attention_bias", default=False)
    yield from common.embedding_fills(sizes, body, f"{head}lm_head.weight")
    for i in range(sizes.layers):
        to, source = f"layers.{i}.", f"{body}layers.{i}."
        yield vector(f"{to}attention_norm", f"{source}input_layernorm.weight", sizes.hidden)
        yield from common.attention_fills(sizes, to, f"{source}self_attn.", qkv_bias=bias, output_bias=bias)
        if is_gemma3(config):
            yield vector(f"{to}q_norm", f"{source}self_attn.q_norm.weight", sizes.head_dim)
            yield vector(f"{to}k_norm", f"{source}self_attn.k_norm.weight", sizes.head_dim)
        yield vector(f"{to}attention_post_norm", f"{source}post_attention_layernorm.weight", sizes.hidden)
        yield vector(f"{to}ffn_norm", f"{source}pre_feedforward_layernorm.weight", sizes.hidden)
        yield from common.gated_fills((f"{to}gate_up", f"{to}down"), f"{source}mlp.", sizes.ffn, sizes.hidden)
        yield vector(f"{to}ffn_post_norm", f"{source}post_feedforward_layernorm.weight", sizes.hidden)


def ignored(config: Config) -> list[str]:
    patterns = _VISION if config.architecture == "Gemma3ForConditionalGeneration" else []
    return patterns + common.unused_head(sizes_of(text(config)))
