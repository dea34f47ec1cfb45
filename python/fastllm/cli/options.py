"""Options that several commands share, declared once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help='Checkpoint directory or hub id; the model of the package if absent or "demo".'),
]
Device = Annotated[str, typer.Option(help='"auto", "cpu", "cpu:avx2", "cpu:scalar", ... or "reference".')]
Dtype = Annotated[str, typer.Option(help='Weights: "auto" (as in the checkpoint), "float32", "bfloat16", "float16".')]
Quantization = Annotated[
    str | None, typer.Option(help='Round weights while loading: "int4", "int8", or with a group size "int4-g128".')
]
ActivationMode = Annotated[
    str, typer.Option(help='How activations meet packed weights: "auto", "a8", "a8r", "a15", "bf16", "f32", "fp8".')
]
PackedCache = Annotated[
    Path | None, typer.Option(help="Directory for packed weights; the next start reads them from there.")
]
KvCacheDtype = Annotated[
    str, typer.Option(help='KV cache: "auto" (as the weights), "float32", "bfloat16", "float16", "int8", "fp8" (CUDA).')
]
Threads = Annotated[int | None, typer.Option(help="CPU threads; by default what affinity and cgroup quota leave.")]
MaxModelLen = Annotated[
    int | None, typer.Option(help="Longest context in tokens, prompt and output; the model's by default.")
]
MemoryBudget = Annotated[
    str | None,
    typer.Option(help='Memory for weights, activations and cache, as "4GiB"; by default a share of what is free.'),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of text.")]
MaxTokens = Annotated[int, typer.Option(help="Tokens to generate at most.")]
Temperature = Annotated[float, typer.Option(help="0 takes the most likely token; more makes the choice more random.")]
TopP = Annotated[float, typer.Option(help="Keep the smallest set of tokens with this probability.")]
TopK = Annotated[int, typer.Option(help="Keep this many most likely tokens; 0 keeps all.")]
Seed = Annotated[int | None, typer.Option(help="Same seed and prompt, same output.")]
