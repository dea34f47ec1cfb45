"""Speed and peak memory of loading a checkpoint: writes one of random bf16 weights, loads it in a fresh process.

    python tools/bench_load.py [--gigabytes 1.0] [--threads 1 2] [--format bf16|gptq] [--quantization int4]

One load before is not counted, so that the figures are of a warm page cache. Peak is VmHWM of the loading process less
what it had before; 1.00 of the weights plus a few blocks is what the loader aims at. CPU seconds are what all threads
spent in the program itself: on a machine with other work they say more than the time that passed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

E, F, V, HEADS, KV_HEADS, D = 2048, 6144, 65536, 16, 4, 128


def write(folder: Path, target_bytes: float, layout: str = "bf16") -> int:
    """A Llama of about that many bytes in bf16; returns the bytes of its tensors."""
    layer = {
        "input_layernorm": (E,), "post_attention_layernorm": (E,),
        "self_attn.q_proj": (HEADS * D, E), "self_attn.k_proj": (KV_HEADS * D, E),
        "self_attn.v_proj": (KV_HEADS * D, E), "self_attn.o_proj": (E, HEADS * D),
        "mlp.gate_proj": (F, E), "mlp.up_proj": (F, E), "mlp.down_proj": (E, F),
    }  # fmt: skip
    layer_bytes = sum(2 * int(np.prod(shape)) for shape in layer.values())
    num_layers = max(1, round((target_bytes - 2 * V * E) / layer_bytes))
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, E), "model.norm.weight": (E,)}
    for i in range(num_layers):
        shapes |= {f"model.layers.{i}.{name}.weight": shape for name, shape in layer.items()}
    config = {
        "architectures": ["LlamaForCausalLM"], "hidden_size": E, "intermediate_size": F, "vocab_size": V,
        "num_hidden_layers": num_layers, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "head_dim": D,
        "max_position_embeddings": 4096, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    }  # fmt: skip
    entries = {name: ("BF16", shape) for name, shape in shapes.items()}
    if layout == "gptq":
        config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
        entries = _as_gptq(shapes)
    (folder / "config.json").write_text(json.dumps(config))
    header, end = {}, 0
    for name, (dtype, shape) in entries.items():
        size = {"BF16": 2, "F16": 2, "I32": 4}[dtype] * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    # bf16 in [0.5, 1): random mantissas, one exponent. Finite as float16 as well.
    noise = np.random.default_rng(0).integers(0x3F00, 0x3F80, size=8 << 20, dtype=np.uint16).tobytes()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for begin in range(0, end, len(noise)):
            file.write(noise[: end - begin])
    return end


def _as_gptq(shapes: dict[str, tuple[int, ...]]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The projections in 4 bits and groups of 128."""
    entries: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if not name.endswith("proj.weight"):
            entries[name] = ("BF16", shape)
            continue
        module, (rows, cols) = name.removesuffix("weight"), shape
        entries[f"{module}qweight"] = ("I32", (cols // 8, rows))
        entries[f"{module}qzeros"] = ("I32", (cols // 128, rows // 8))
        entries[f"{module}scales"] = ("F16", (cols // 128, rows))
    return entries


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def load(folder: Path, num_threads: int, quantization: str | None = None) -> dict[str, float]:
    from fastllm import _core
    from fastllm.checkpoint import formats, loader

    before = _status("VmRSS")
    begin, begin_cpu = time.perf_counter(), os.times().user
    plan = loader.load(folder)
    shapes = [formats.MatrixShape(*shape) for shape in _core.matrix_shapes(plan.spec)]
    held = formats.choose_formats(shapes, plan.fills, quantization, "auto")
    model = _core.Model(
        plan.spec, device="cpu", num_threads=num_threads, dtype=plan.dtype, formats=held.native()
    )  # fmt: skip
    model.allocate_weights()
    plan.fill(model, num_threads=num_threads, formats=held)
    seconds, cpu_seconds = time.perf_counter() - begin, os.times().user - begin_cpu
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "weight_bytes": model.weight_bytes(),
        "peak_bytes": _status("VmHWM") - before,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--format", choices=["bf16", "gptq"], default="bf16")
    parser.add_argument("--quantization", help="as of LLM")
    parser.add_argument("--folder", help="where to write the checkpoint; a temporary folder by default")
    parser.add_argument("--load", type=Path, help=argparse.SUPPRESS)  # the child process
    args = parser.parse_args()
    if args.load is not None:
        print(json.dumps(load(args.load, args.threads[0], args.quantization)))
        return
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        size = write(Path(name), args.gigabytes * 1e9, args.format)
        for i, num_threads in enumerate([1, *args.threads]):
            command = [sys.executable, __file__, "--load", name, "--threads", str(num_threads)]
            command += [] if args.quantization is None else ["--quantization", args.quantization]
            found = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            if i == 0:
                continue
            print(
                f"{size / 1e9:.2f} GB, {num_threads} threads: {found['seconds']:.2f} s, "
                f"{size / 1e9 / found['seconds']:.2f} GB/s, {size / 1e9 / found['cpu_seconds']:.2f} per CPU second; "
                f"peak {found['peak_bytes'] / 1e9:.3f} GB = "
                f"weights + {(found['peak_bytes'] - found['weight_bytes']) / 1e6:.0f} MB"
            )


if __name__ == "__main__":
    main()
