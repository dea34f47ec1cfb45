"""Small random checkpoints of every architecture, written by transformers, and the table that lists them.

A model initialised with 0.02 proves nothing: its arg max is decided by rounding. Here projections keep the variance of
their input, logits have a deviation of about 3, norms lie around 1, and biases and sinks are of order one.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

VOCAB = 263  # 256 bytes, 3 special tokens, and ids that the tokenizer does not know, as padded models have
BASE: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 72, "intermediate_size": 107, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    name: str
    config: str  # class in transformers
    model: str
    values: dict[str, Any] = field(default_factory=dict)
    prompt_len: int = 40
    max_model_len: int = 128


def _rope(**values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_theta": 10000.0, **values}}


def _llama(name: str, **values: Any) -> Case:
    return Case(name, "LlamaConfig", "LlamaForCausalLM", values)


def _longrope(factor: float, count: int) -> list[float]:
    return [1.0 + factor * i / count for i in range(count)]


# Seeds with which every greedy step is decided by a margin of 8e-3 or more; 0 for the others.
_SEEDS = {
    "llama-mha": 1, "llama-mqa-tied-bias": 11, "llama-llama3": 1, "qwen2": 11, "qwen2-window": 1, "qwen3": 2,
    "phi3-longrope": 5, "gemma2": 5, "gemma3": 4, "qwen2-moe": 2, "qwen3-moe": 1,
}  # fmt: skip
_SHORT = {"max_position_embeddings": 32}
CASES = [
    _llama("llama-gqa", head_dim=32),
    _llama("llama-mha", num_key_value_heads=4),
    _llama("llama-mqa-tied-bias", num_key_value_heads=1, head_dim=64, tie_word_embeddings=True, attention_bias=True),
    _llama("llama-linear", head_dim=32, **_SHORT, **_rope(rope_type="linear", factor=4.0)),
    _llama("llama-dynamic", head_dim=32, **_SHORT, **_rope(rope_type="dynamic", factor=4.0)),
    _llama(
        "llama-yarn", head_dim=32, max_position_embeddings=128,
        **_rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32),
    ),
    _llama(
        "llama-yarn-mscale", head_dim=64, max_position_embeddings=128,
        **_rope(rope_type="yarn", factor=4.0, original_max_position_embeddings=32, mscale=1.3, mscale_all_dim=0.7,
                beta_fast=16.0, beta_slow=2.0, truncate=False),
    ),
    _llama(
        "llama-llama3", head_dim=32, max_position_embeddings=256,
        **_rope(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=32),
    ),
    Case("mistral-window", "MistralConfig", "MistralForCausalLM", {"sliding_window": 13, "head_dim": 32}),
    Case("qwen2", "Qwen2Config", "Qwen2ForCausalLM", {"tie_word_embeddings": True}),
    Case(
        "qwen2-window", "Qwen2Config", "Qwen2ForCausalLM",
        {"use_sliding_window": True, "sliding_window": 11, "max_window_layers": 1, "num_hidden_layers": 3},
    ),
    Case("qwen3", "Qwen3Config", "Qwen3ForCausalLM", {"head_dim": 128}),
    Case(
        "phi3", "Phi3Config", "Phi3ForCausalLM",
        {"hidden_size": 128, "original_max_position_embeddings": 256, "sliding_window": 17, **_rope(
            rope_type="default", partial_rotary_factor=0.75)},
    ),
    Case(
        "phi3-longrope", "Phi3Config", "Phi3ForCausalLM",
        {"hidden_size": 128, "original_max_position_embeddings": 32, **_rope(
            rope_type="longrope", partial_rotary_factor=0.75, short_factor=_longrope(0.5, 12),
            long_factor=_longrope(5.0, 12), original_max_position_embeddings=32)},
    ),
    Case(
        "gemma2", "Gemma2Config", "Gemma2ForCausalLM",
        {"head_dim": 256, "num_hidden_layers": 4, "sliding_window": 9, "query_pre_attn_scalar": 144,
         "attn_logit_softcapping": 4.0, "final_logit_softcapping": 6.0},
    ),
    Case(
        "gemma3", "Gemma3TextConfig", "Gemma3ForCausalLM",
        {"head_dim": 64, "num_hidden_layers": 4, "sliding_window": 9, "sliding_window_pattern": 2,
         "query_pre_attn_scalar": 50, "rope_parameters": {
             "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
             "sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    ),
    Case("olmo2", "Olmo2Config", "Olmo2ForCausalLM", {"num_hidden_layers": 3}),
    Case(
        "mixtral", "MixtralConfig", "MixtralForCausalLM",
        {"num_local_experts": 5, "num_experts_per_tok": 2, "head_dim": 32, "sliding_window": 19},
    ),
    Case(
        "qwen2-moe", "Qwen2MoeConfig", "Qwen2MoeForCausalLM",
        {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 37, "num_hidden_layers": 4,
         "shared_expert_intermediate_size": 53, "decoder_sparse_step": 2},
    ),
    Case(
        "qwen3-moe", "Qwen3MoeConfig", "Qwen3MoeForCausalLM",
        {"num_experts": 7, "num_experts_per_tok": 2, "moe_intermediate_size": 41, "head_dim": 32,
         "norm_topk_prob": True, "mlp_only_layers": [1], "num_hidden_layers": 3},
    ),
    Case(
        "gpt-oss", "GptOssConfig", "GptOssForCausalLM",
        {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 64, "sliding_window": 12,
         "max_position_embeddings": 128, "rope_parameters": {
             "rope_type": "yarn", "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
             "original_max_position_embeddings": 32, "rope_theta": 150000.0}},
    ),
]  # fmt: skip


def make_config(case: Case) -> Any:
    values = json.loads(json.dumps({**BASE, **case.values}))
    return getattr(transformers, case.config)(**values)


@torch.no_grad()
def make_model(case: Case) -> Any:
    config = make_config(case)
    config._attn_implementation = "eager"
    model = getattr(transformers, case.model)(config).eval().to(torch.float32)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("eager")
    randomize(model, torch.Generator().manual_seed(_SEEDS.get(case.name, 0)))
    return model


def randomize(model: Any, generator: torch.Generator) -> None:
    hidden = model.config.get_text_config().hidden_size
    is_gemma = type(model).__name__.startswith("Gemma")
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            # Gemma adds 1. Its blocks must outweigh the tied embedding, or the model repeats its input.
            value = 0.3 * noise + ((3.0 if "post_" in name else 0.0) if is_gemma else 1.0)
        elif "bias" in name:
            value = 0.3 * noise
        elif "sinks" in name:
            value = noise
        elif "embed_tokens" in name or "lm_head" in name:
            value = (1.5 if is_gemma else 3.0) * noise / math.sqrt(hidden)
        else:
            # gpt-oss keeps its experts as [X, in, out], the others as [.., out, in].
            is_transposed = parameter.dim() == 3 and type(model).__name__.startswith("GptOss")
            fan_in = parameter.shape[1] if is_transposed else parameter.shape[-1]
            value = 1.2 * noise / math.sqrt(fan_in)
        parameter.copy_(value)


def save(model: Any, folder: Path) -> Path:
    """Weights, config and a byte-level tokenizer."""
    model.save_pretrained(folder)
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<s>", "</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def prompt_ids(case: Case, seed: int = 1) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (case.prompt_len,), generator=generator).tolist()


@torch.no_grad()
def settle_rope(model: Any, case: Case) -> None:
    """Dynamic NTK in transformers grows with the longest input seen; show it one of max_model_len tokens."""
    model(torch.zeros((1, case.max_model_len), dtype=torch.long), use_cache=False)


@torch.no_grad()
def reference_logits(model: Any, ids: list[int]) -> torch.Tensor:
    return model(torch.tensor([ids]), use_cache=False).logits[0].float()


@torch.no_grad()
def reference_greedy(model: Any, ids: list[int], count: int) -> tuple[list[int], float]:
    """Greedy tokens without a cache, and the smallest margin between the two best logits on the way."""
    tokens, margin = list(ids), math.inf
    for _ in range(count):
        top = reference_logits(model, tokens)[-1].topk(2)
        margin = min(margin, float(top.values[0] - top.values[1]))
        tokens.append(int(top.indices[0]))
    return tokens[len(ids) :], margin


def make_vision_model() -> Any:
    """Gemma 3 with a vision tower; its language model is the case "gemma3"."""
    case = next(case for case in CASES if case.name == "gemma3")
    text = transformers.Gemma3TextConfig(**{**BASE, **case.values})
    vision = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 28,
        "patch_size": 14, "model_type": "siglip_vision_model",
    }  # fmt: skip
    model = transformers.Gemma3ForConditionalGeneration(
        transformers.Gemma3Config(text_config=text, vision_config=vision)
    )
    model.eval().set_attn_implementation("eager")
    with torch.no_grad():
        randomize(model, torch.Generator().manual_seed(0))
    return model


# The same config in the spelling of transformers 4, which most of the hub has.
def to_v4(config: dict[str, Any]) -> dict[str, Any]:
    old = dict(config)
    old["torch_dtype"] = old.pop("dtype")
    rope = old.pop("rope_parameters")
    if "full_attention" in rope:  # Gemma 3
        old["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
        old["sliding_window_pattern"] = old.pop("_sliding_window_pattern")
        del old["layer_types"]
        rope = rope["full_attention"]
    rope = dict(rope)
    old["rope_theta"] = rope.pop("rope_theta")
    if "partial_rotary_factor" in rope:
        old["partial_rotary_factor"] = rope.pop("partial_rotary_factor")
    kind = rope.pop("rope_type")
    old["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    return old
