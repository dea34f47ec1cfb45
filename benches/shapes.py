"""Published model shapes with random weights: the same work as the real model, without a download."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

_QWEN3: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "max_position_embeddings": 40960,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "hidden_act": "silu",
    "torch_dtype": "bfloat16",
}

SHAPES: dict[str, dict[str, Any]] = {
    "qwen3-0.6b": _QWEN3,
    "llama-3.2-1b": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 32.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
        "tie_word_embeddings": True,
        "hidden_act": "silu",
        "torch_dtype": "bfloat16",
    },
    # A small mixture: hidden 1024, 32 experts of 512, 4 per token.
    "moe-32x512": {
        **_QWEN3,
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "num_hidden_layers": 12,
        "num_experts": 32,
        "num_experts_per_tok": 4,
        "moe_intermediate_size": 512,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "vocab_size": 32000,
    },
}

# For trying things out. Wide enough for blocks of 256 weights.
QUICK = "quick"
SHAPES[QUICK] = {
    **_QWEN3,
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 4096,
}


def tensors(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of the weights, as the checkpoint of that architecture has them."""
    hidden, head = config["hidden_size"], config["head_dim"]
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    yield "model.embed_tokens.weight", (config["vocab_size"], hidden)
    for i in range(config["num_hidden_layers"]):
        layer = f"model.layers.{i}."
        yield layer + "input_layernorm.weight", (hidden,)
        yield layer + "self_attn.q_proj.weight", (heads * head, hidden)
        yield layer + "self_attn.k_proj.weight", (kv_heads * head, hidden)
        yield layer + "self_attn.v_proj.weight", (kv_heads * head, hidden)
        yield layer + "self_attn.o_proj.weight", (hidden, heads * head)
        if config["model_type"].startswith("qwen3"):
            yield layer + "self_attn.q_norm.weight", (head,)
            yield layer + "self_attn.k_norm.weight", (head,)
        yield layer + "post_attention_layernorm.weight", (hidden,)
        if "num_experts" in config:
            yield layer + "mlp.gate.weight", (config["num_experts"], hidden)
            blocks = [f"mlp.experts.{e}." for e in range(config["num_experts"])]
            ffn = config["moe_intermediate_size"]
        else:
            blocks, ffn = ["mlp."], config["intermediate_size"]
        for block in blocks:
            yield layer + block + "gate_proj.weight", (ffn, hidden)
            yield layer + block + "up_proj.weight", (ffn, hidden)
            yield layer + block + "down_proj.weight", (hidden, ffn)
    yield "model.norm.weight", (hidden,)


def write_checkpoint(shape: str, folder: Path, seed: int = 0) -> None:
    """Writes config.json and model.safetensors (bfloat16) unless they are there. Matrices are normal with deviation
    1 / sqrt(columns), norms are one, so that activations stay finite."""
    if (folder / "model.safetensors").exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    config = SHAPES[shape]
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    header: dict[str, Any] = {}
    offset = 0
    for name, dims in tensors(config):
        size = 2 * int(np.prod(dims))
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    rng = np.random.default_rng(seed)
    part = folder / "model.safetensors.part"
    with part.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, dims in tensors(config):
            file.write(_bfloat16(rng, dims).tobytes())
    part.rename(folder / "model.safetensors")


def write_tokenizer(folder: Path, vocab_size: int, seed: int = 0) -> None:
    """Writes a tokenizer.json of this size: the bytes, then made-up pieces of words of 2 to 8 letters. Encoding gives
    bytes alone; decoding does the work of a real one."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    pieces = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    rng = np.random.default_rng(seed)
    while len(pieces) < vocab_size:
        letters = "".join(map(chr, rng.integers(97, 123, rng.integers(2, 9))))
        pieces.setdefault(("\u0120" if rng.random() < 0.5 else "") + letters, len(pieces))
    tokenizer = Tokenizer(models.BPE(pieces, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))


def missing_tokenizer(model: str | None, folder: str) -> str | None:
    """`folder` with a tokenizer of the size of the model's vocabulary, if the model has none of its own."""
    if model is None or (Path(model) / "tokenizer.json").exists():
        return None
    write_tokenizer(Path(folder), json.loads((Path(model) / "config.json").read_text())["vocab_size"])
    return folder


def _bfloat16(rng: np.random.Generator, dims: tuple[int, ...]) -> np.ndarray[Any, np.dtype[np.uint16]]:
    if len(dims) == 1:
        values = np.ones(dims, np.float32)
    else:
        values = rng.standard_normal(dims, np.float32) * np.float32(dims[1] ** -0.5)
    return (values.view(np.uint32) >> 16).astype(np.uint16)
