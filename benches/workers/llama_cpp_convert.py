"""A random-weight checkpoint of shapes.py as GGUF, in bf16 or quantized by llama.cpp itself.
argv: model folder, GGUF file, type (BF16, Q4_0, Q4_K_M, Q8_0). Runs in the environment of llama-cpp-python and gguf.

The order of rows that llama.cpp wants for its rotary embedding is not applied: the weights are random, the work is the
same.
"""

import ctypes
import json
import mmap
import re
import sys
from pathlib import Path

import gguf
import llama_cpp
import numpy as np

ARCHITECTURES = {"qwen3": gguf.MODEL_ARCH.QWEN3, "llama": gguf.MODEL_ARCH.LLAMA, "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE}


def write_bf16(folder: Path, out: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    arch = ARCHITECTURES[config["model_type"]]
    layers = config["num_hidden_layers"]
    names = gguf.get_tensor_name_map(arch, layers)
    writer = gguf.GGUFWriter(out, gguf.MODEL_ARCH_NAMES[arch])
    writer.add_block_count(layers)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("none")
    if "num_experts" in config:
        writer.add_expert_count(config["num_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    experts: dict[str, dict[int, np.ndarray]] = {}
    for name, array in _tensors(folder / "model.safetensors"):
        match = re.fullmatch(r"(.*\.experts)\.(\d+)\.(\w+)\.weight", name)
        if match:  # llama.cpp keeps the experts of a layer in one tensor
            merged = f"{match[1]}.{match[3]}.weight"
            parts = experts.setdefault(merged, {})
            parts[int(match[2])] = array
            if len(parts) < config["num_experts"]:
                continue
            name, array = merged, np.stack([parts[i] for i in sorted(parts)])
            del experts[merged]
        target = names.get_name(name, try_suffixes=(".weight",))
        if target is None:
            raise SystemExit(f"no GGUF name for {name}")
        if array.ndim == 1 or "gate_inp" in target:
            wide = (array.astype(np.uint32) << 16).view(np.float32)
            writer.add_tensor(target, wide)
        else:
            writer.add_tensor(target, array.view(np.uint8), raw_dtype=gguf.GGMLQuantizationType.BF16)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(path: Path):
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    size = int.from_bytes(data[:8], "little")
    for name, entry in json.loads(data[8 : 8 + size]).items():
        begin, end = entry["data_offsets"]
        array = np.frombuffer(data, np.uint16, (end - begin) // 2, 8 + size + begin)
        yield name, array.reshape(entry["shape"])


def quantize(source: Path, out: Path, kind: str) -> None:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
    params.nthread = 2
    if llama_cpp.llama_model_quantize(str(source).encode(), str(out).encode(), ctypes.byref(params)) != 0:
        raise SystemExit(f"llama.cpp could not quantize to {kind}")


if __name__ == "__main__":
    folder, target, wanted = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    if wanted == "BF16":
        write_bf16(folder, target)
    else:
        quantize(target.with_name("BF16.gguf"), target, wanted)
