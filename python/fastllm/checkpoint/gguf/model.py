"""GGUF metadata and tensor names -> the config.json and the names that the families of fastllm.models read."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fastllm.checkpoint.config import Config
from fastllm.checkpoint.gguf.reader import GgufFile, GgufTensor
from fastllm.checkpoint.gguf.tensor import FloatRows, GgufSource, interleaved_rows
from fastllm.errors import CheckpointError, UnsupportedModelError

ARCHITECTURES = {
    "llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM",
    "qwen3moe": "Qwen3MoeForCausalLM", "gemma2": "Gemma2ForCausalLM", "gemma3": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
}  # fmt: skip
_GEMMAS = ("gemma2", "gemma3")
# The largest Gemmas scale their scores by E / H and not by D; nothing in the metadata says so but the depth.
_SCALED_BY_HIDDEN = {"gemma2": 46, "gemma3": 62}
_ROPE_FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


class Metadata(Config):
    """Typed access to the keys of one architecture."""

    def __init__(self, file: GgufFile) -> None:
        super().__init__(file.metadata, f"{file.path}: metadata")
        self.name = self.str("general.architecture")
        if self.name not in ARCHITECTURES:
            raise self.unsupported(
                "general.architecture", f"is {self.name[:60]!r}; supported are {', '.join(ARCHITECTURES)}"
            )

    def size(self, key: str, **kwargs: Any) -> Any:
        return self.int(f"{self.name}.{key}", **{"max": 1 << 24, **kwargs})

    def number(self, key: str, **kwargs: Any) -> Any:
        return self.float(f"{self.name}.{key}", **kwargs)


def config_of(file: GgufFile) -> Config:
    """What config.json would say."""
    m = Metadata(file)
    embedding = _tensor(file, "token_embd.weight")
    if len(embedding.shape) != 2:
        raise CheckpointError(f"{embedding.where}: shape is {list(embedding.shape)}, expected two sizes")
    heads, hidden = m.size("attention.head_count", min=1), m.size("embedding_length", min=1)
    experts = m.size("expert_count", default=0)
    values: dict[str, Any] = {
        "architectures": ["MixtralForCausalLM" if m.name == "llama" and experts else ARCHITECTURES[m.name]],
        "hidden_size": hidden, "num_hidden_layers": m.size("block_count", min=1, max=4096),
        "intermediate_size": m.size("feed_forward_length", min=1, default=1),
        "num_attention_heads": heads, "num_key_value_heads": m.size("attention.head_count_kv", min=1, default=heads),
        "head_dim": m.size("attention.key_length", min=1, default=hidden // heads),
        "rms_norm_eps": m.number("attention.layer_norm_rms_epsilon", min=0.0, max=1.0),
        "max_position_embeddings": m.size("context_length", min=1, max=2**31 - 1),
        "vocab_size": embedding.shape[0], "tie_word_embeddings": "output.weight" not in file.tensors,
        "torch_dtype": {"F32": "float32", "F16": "float16"}.get(embedding.type.name, "bfloat16"),
    }  # fmt: skip
    if m.size("attention.value_length", min=1, default=values["head_dim"]) != values["head_dim"]:
        raise m.unsupported(f"{m.name}.attention.value_length", "differs from attention.key_length")
    if experts:
        values |= {
            "num_local_experts": experts, "num_experts": experts, "norm_topk_prob": True,
            "num_experts_per_tok": m.size("expert_used_count", min=1),
            "moe_intermediate_size": m.size("expert_feed_forward_length", min=1, default=values["intermediate_size"]),
        }  # fmt: skip
    values |= _rope(m, file, values)
    if m.name in _GEMMAS:
        values |= _gemma(m, values)
    elif m.name == "phi3":
        values["sliding_window"] = m.size("attention.sliding_window", max=2**31 - 1, default=0) or None
    return Config({key: value for key, value in values.items() if value is not None}, m.where)


def _rope(m: Metadata, file: GgufFile, values: dict[str, Any]) -> dict[str, Any]:
    theta = m.number("rope.freq_base", min=1.0001, max=1e12, default=10000.0)
    found: dict[str, Any] = {"rope_theta": theta}
    original = m.size("rope.scaling.original_context_length", min=1, max=2**31 - 1, default=None)
    kind = m.str(f"{m.name}.rope.scaling.type", default="none")
    rotated = m.size("rope.dimension_count", min=2, default=values["head_dim"])
    if m.name == "phi3" and rotated != values["head_dim"]:
        found["partial_rotary_factor"] = rotated / values["head_dim"]
    elif rotated != values["head_dim"]:
        raise m.unsupported(
            f"{m.name}.rope.dimension_count", f"is {rotated}; heads of {values['head_dim']} rotate whole"
        )
    if "rope_freqs.weight" in file.tensors:  # Llama 3.1: the frequencies' divisors, worked out by the converter
        factors = _floats(file, "rope_freqs.weight")
        found["rope_scaling"] = {
            "type": "longrope", "short_factor": factors, "long_factor": factors, "attention_factor": 1.0,
        }  # fmt: skip
    elif "rope_factors_long.weight" in file.tensors:
        found["rope_scaling"] = {
            "type": "longrope", "long_factor": _floats(file, "rope_factors_long.weight"),
            "short_factor": _floats(file, "rope_factors_short.weight"),
            "attention_factor": m.number("rope.scaling.attn_factor", min=1e-6, max=1e6, default=None),
        }  # fmt: skip
        found["original_max_position_embeddings"] = original
    elif kind in ("linear", "yarn"):
        found["rope_scaling"] = {
            "type": kind, "factor": m.number("rope.scaling.factor", min=1e-6, max=1e6),
            "original_max_position_embeddings": original,
        }  # fmt: skip
    elif kind != "none":
        raise m.unsupported(
            f"{m.name}.rope.scaling.type", f"is {kind[:40]!r}; none, linear, yarn and longrope are known"
        )
    return found


def _gemma(m: Metadata, values: dict[str, Any]) -> dict[str, Any]:
    is_large = values["num_hidden_layers"] == _SCALED_BY_HIDDEN[m.name]
    by_hidden = values["hidden_size"] / values["num_attention_heads"]
    found: dict[str, Any] = {
        "query_pre_attn_scalar": by_hidden if is_large else values["head_dim"],
        "sliding_window": m.size("attention.sliding_window", min=1, max=2**31 - 1, default=4096),
    }
    if m.name == "gemma2":
        found["attn_logit_softcapping"] = m.number("attn_logit_softcapping", min=1e-3, max=1e6, default=50.0)
        found["final_logit_softcapping"] = m.number("final_logit_softcapping", min=1e-3, max=1e6, default=30.0)
    else:
        found["rope_local_base_freq"] = m.number("rope.freq_base_swa", min=1.0001, max=1e12, default=10000.0)
        found["rope_scaling"] = values.get("rope_scaling") or {"type": "default"}
    return found


def _tensor(file: GgufFile, name: str) -> GgufTensor:
    if name not in file.tensors:
        raise CheckpointError(f"{file.path}: tensor {name} is missing")
    return file.tensors[name]


def _floats(file: GgufFile, name: str) -> list[float]:
    tensor = _tensor(file, name)
    if tensor.type.name != "F32" or len(tensor.shape) != 1 or tensor.shape[0] > 65536:
        raise CheckpointError(f"{tensor.where}: expected a short vector of F32")
    rows = GgufSource(tensor, tensor.shape).rows(None, 0, 1)
    assert isinstance(rows, FloatRows)
    return [float(x) for x in np.ravel(rows.values)]


_TOP = {
    "token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}  # fmt: skip
_LAYER = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "ffn_gate_inp": "mlp.gate",
}  # fmt: skip
_DIFFERENT = {
    "phi3": {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj"},
    **{name: {"ffn_norm": "pre_feedforward_layernorm", "post_attention_norm": "post_attention_layernorm",
              "post_ffw_norm": "post_feedforward_layernorm"} for name in _GEMMAS},
}  # fmt: skip
# Stacked experts: (in Qwen3-MoE, in Mixtral).
_EXPERTS = {
    "ffn_gate_exps": ("gate_proj", "w1"), "ffn_up_exps": ("up_proj", "w3"), "ffn_down_exps": ("down_proj", "w2"),
}  # fmt: skip


def sources(file: GgufFile, config: Config) -> dict[str, GgufSource]:
    """The tensors by the names of a Hugging Face checkpoint. Those without a place keep theirs: refused later."""
    architecture = str(file.metadata["general.architecture"])
    names = {**_LAYER, **_DIFFERENT.get(architecture, {})}
    found: dict[str, GgufSource] = {}
    for tensor in file.tensors.values():
        if tensor.name in _ROPE_FACTORS:
            continue
        for name, source in _named(tensor, architecture, names, config):
            if name in found:
                raise CheckpointError(f"{tensor.where}: takes the place {name} of another tensor")
            found[name] = source
    return found


def _named(
    tensor: GgufTensor, architecture: str, names: dict[str, str], config: Config
) -> Iterator[tuple[str, GgufSource]]:
    add = -1.0 if architecture in _GEMMAS and "norm" in tensor.name else 0.0
    if tensor.name in _TOP:
        yield _TOP[tensor.name], GgufSource(tensor, tensor.shape, add=add)
        return
    block, _, rest = tensor.name.removeprefix("blk.").partition(".")
    part, _, kind = rest.rpartition(".")
    if not tensor.name.startswith("blk.") or not block.isdecimal() or kind not in ("weight", "bias"):
        yield tensor.name, GgufSource(tensor, tensor.shape)
    elif part in _EXPERTS and len(tensor.shape) == 3 and kind == "weight":
        num_experts, num_rows, num_cols = tensor.shape
        is_mixtral = architecture == "llama"
        place = f"model.layers.{block}.{'block_sparse_moe' if is_mixtral else 'mlp'}.experts"
        if num_experts != config.values["num_experts"]:
            raise CheckpointError(f"{tensor.where}: has {num_experts} experts, expected {config.values['num_experts']}")
        for i in range(num_experts):
            source = GgufSource(tensor, (num_rows, num_cols), first_row=i * num_rows)
            yield f"{place}.{i}.{_EXPERTS[part][is_mixtral]}.weight", source
    elif part in names:
        name = names[part]
        if part == "ffn_gate_inp" and architecture == "llama":
            name = "block_sparse_moe.gate"
        order = None
        if architecture == "llama" and part in ("attn_q", "attn_k") and len(tensor.shape) == 2:
            head_dim = int(config.values["head_dim"])
            if tensor.shape[0] % head_dim != 0:
                raise CheckpointError(f"{tensor.where}: has {tensor.shape[0]} rows, expected heads of {head_dim}")
            order = interleaved_rows(tensor.shape[0] // head_dim, head_dim)
        yield f"model.layers.{block}.{name}.{kind}", GgufSource(tensor, tensor.shape, order=order, add=add)
    else:
        yield tensor.name, GgufSource(tensor, tensor.shape)


def find(model: Path) -> Path | None:
    """The GGUF file that `model` is, or the only one of a folder without config.json; None: it is something else."""
    if model.suffix == ".gguf" and model.is_file():
        return model
    if not model.is_dir() or (model / "config.json").exists():
        return None
    files = sorted(model.glob("*.gguf"))
    if len(files) > 1:
        raise UnsupportedModelError(f"{model}: {len(files)} GGUF files; name the one to load")
    return files[0] if files else None
