"""A tiny Llama checkpoint written by hand: no torch, and every byte can be put wrong on purpose."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

E, F, V, D = 8, 6, 10, 4
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": E, "intermediate_size": F,
    "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "vocab_size": V,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
    "tie_word_embeddings": False, "torch_dtype": "float32",
}  # fmt: skip
_LAYER = "model.layers.0."
SHAPES: dict[str, tuple[int, ...]] = {
    "model.embed_tokens.weight": (V, E), "lm_head.weight": (V, E), "model.norm.weight": (E,),
    f"{_LAYER}input_layernorm.weight": (E,), f"{_LAYER}post_attention_layernorm.weight": (E,),
    f"{_LAYER}self_attn.q_proj.weight": (2 * D, E), f"{_LAYER}self_attn.k_proj.weight": (D, E),
    f"{_LAYER}self_attn.v_proj.weight": (D, E), f"{_LAYER}self_attn.o_proj.weight": (E, 2 * D),
    f"{_LAYER}mlp.gate_proj.weight": (F, E), f"{_LAYER}mlp.up_proj.weight": (F, E),
    f"{_LAYER}mlp.down_proj.weight": (E, F),
}  # fmt: skip
Q_PROJ = f"{_LAYER}self_attn.q_proj.weight"


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in SHAPES.items()}


def header_of(arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    header: dict[str, Any] = {}
    begin = 0
    for name, array in arrays.items():
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": [begin, begin + array.nbytes]}
        begin += array.nbytes
    return header


def encode(header: Any, data: bytes, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def data_of(arrays: dict[str, np.ndarray]) -> bytes:
    return b"".join(array.tobytes() for array in arrays.values())


def file_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    return encode(header_of(arrays), data_of(arrays))


def write(folder: Path, config: Any = None, weights: bytes | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    text = config if isinstance(config, str) else json.dumps(CONFIG if config is None else config)
    (folder / "config.json").write_text(text)
    (folder / "model.safetensors").write_bytes(file_bytes(tensors()) if weights is None else weights)
    return folder


def write_sharded(folder: Path, weight_map: Callable[[dict[str, Any]], Any] | None = None) -> Path:
    """Two shards and an index; the index can be replaced."""
    write(folder)
    (folder / "model.safetensors").unlink()
    arrays = list(tensors().items())
    named: dict[str, Any] = {}
    for i, part in enumerate((arrays[:5], arrays[5:]), start=1):
        file = f"model-0000{i}-of-00002.safetensors"
        (folder / file).write_bytes(file_bytes(dict(part)))
        named |= {name: file for name, _ in part}
    index = {"metadata": {}, "weight_map": named if weight_map is None else weight_map(named)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
