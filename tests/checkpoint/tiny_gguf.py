"""A tiny Llama in a GGUF file, with a tokenizer."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

E, V = 32, 16


def write(folder: Path, *, quantized: bool = False) -> Path:
    """A one-layer Llama with a tokenizer; its matrices in float32, or in blocks of 8 and of 4 bits."""
    rng = np.random.default_rng(0)
    path = folder / "model.gguf"
    w = gguf.GGUFWriter(path, "llama")
    w.add_context_length(64)
    w.add_embedding_length(E)
    w.add_block_count(1)
    w.add_feed_forward_length(E)
    w.add_head_count(2)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_tokenizer_model("gpt2")
    w.add_token_list([*(chr(ord("a") + i) for i in range(V - 1)), "ab"])
    w.add_token_types([1] * V)
    w.add_token_merges(["a b"])
    w.add_eos_token_id(14)
    shapes = {"token_embd": (V, E), "output_norm": (E,), "blk.0.attn_norm": (E,), "blk.0.ffn_norm": (E,)}
    shapes |= {f"blk.0.{name}": (E, E) for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up",
                                                    "ffn_down")}  # fmt: skip
    for name, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32)
        if quantized and len(shape) == 2:
            kind = gguf.GGMLQuantizationType.Q4_0 if "ffn" in name else gguf.GGMLQuantizationType.Q8_0
            w.add_tensor(f"{name}.weight", gguf.quantize(values, kind), raw_dtype=kind)
        else:
            w.add_tensor(f"{name}.weight", values)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path
