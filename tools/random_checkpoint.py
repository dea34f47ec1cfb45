"""A checkpoint of random weights in the shape of Qwen3-0.6B, to measure what work on it costs.

    python tools/random_checkpoint.py OUT --layers 2

needs torch. Weights keep the variance of their inputs, so that activations stay of order one.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from fastllm.cli.bench import QWEN3_0_6B
from fastllm.quantize.writer import write_index, write_safetensors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=28)
    args = parser.parse_args()
    config = {**QWEN3_0_6B, "num_hidden_layers": args.layers}
    args.out.mkdir()
    (args.out / "config.json").write_text(json.dumps(config, indent=2))
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, cols: int) -> torch.Tensor:
        return (torch.randn(rows, cols, generator=generator) / cols**0.5).bfloat16()

    hidden, ffn, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    q, kv = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    names: dict[str, list[str]] = {}

    def write(file: str, tensors: dict[str, torch.Tensor]) -> None:
        write_safetensors(args.out / file, tensors)
        names[file] = list(tensors)

    embed = {"model.embed_tokens.weight": matrix(config["vocab_size"], hidden), "model.norm.weight": torch.ones(hidden)}
    write("model-embed.safetensors", embed)
    for i in range(args.layers):
        prefix = f"model.layers.{i}."
        shapes = {
            "self_attn.q_proj": (q, hidden), "self_attn.k_proj": (kv, hidden), "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, q), "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden),
            "mlp.down_proj": (hidden, ffn),
        }  # fmt: skip
        tensors = {f"{prefix}{name}.weight": matrix(*shape) for name, shape in shapes.items()}
        for name, size in (
            ("input_layernorm", hidden), ("post_attention_layernorm", hidden), ("self_attn.q_norm", head),
            ("self_attn.k_norm", head),
        ):  # fmt: skip
            tensors[f"{prefix}{name}.weight"] = torch.ones(size, dtype=torch.bfloat16)
        write(f"model-{i:05d}.safetensors", tensors)
    write_index(args.out, names, sum(path.stat().st_size for path in args.out.glob("*.safetensors")))


if __name__ == "__main__":
    main()
