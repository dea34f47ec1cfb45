"""What one token costs: operations by the arithmetic that they run in, and bytes that are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastllm.checkpoint.formats import MatrixShape, WeightFormats

# Activation mode of a packed matrix -> the type that is multiplied. "int8x2": each product is two of bytes.
_OF_MODE = {"a8": "int8", "a8r": "int8", "a15": "int8x2", "bf16": "bfloat16", "f32": "float32", "fp8": "fp8"}


@dataclass(frozen=True, slots=True)
class WorkPerToken:
    """Two operations for each multiply-add; of experts those that a token chooses.

    Attributes:
        layer_ops: of the matrices of all layers, by arithmetic: "float32", "bfloat16", "int8", "int8x2" or "fp8".
        head_ops: the same of the head, which only tokens need that another one follows.
        pair_ops: of attention in all layers, for each token that a token looks at, without regard to windows.
        weight_bytes: that a step with one token reads.
        kv_bytes: of a token in the cache.
    """

    layer_ops: Mapping[str, float]
    head_ops: Mapping[str, float]
    pair_ops: Mapping[str, float]
    weight_bytes: float
    kv_bytes: float


def work_per_token(
    spec: Any, shapes: Sequence[MatrixShape], formats: WeightFormats, matrix_bytes: Mapping[str, int], *, dtype: str,
    kv_dtype: str, kv_bytes: float,
) -> WorkPerToken:  # fmt: skip
    """`dtype`, `kv_dtype`: of the matrices that are floats, and of the K/V cache."""

    def arithmetic(shape: MatrixShape) -> str:
        if shape.slot in formats.packed:
            return _OF_MODE[formats.mode_of(shape.slot)]
        return "bfloat16" if dtype == "bfloat16" and not shape.is_fixed else "float32"

    # The embedding is looked up, not multiplied; where it is the head too, it is read as that.
    head = next(shape for shape in shapes if shape.slot == ("embed" if spec.tied_embeddings else "lm_head"))
    layer_ops: dict[str, float] = {}
    weight_bytes = float(matrix_bytes[head.slot])
    for shape in shapes:
        if not shape.slot.startswith("layers."):
            continue
        moe = spec.layers[int(shape.slot.split(".")[1])].moe
        used = moe.experts_per_token if ".experts." in shape.slot else 1
        kind = arithmetic(shape)
        layer_ops[kind] = layer_ops.get(kind, 0.0) + 2.0 * used * shape.num_rows * shape.num_cols
        weight_bytes += matrix_bytes[shape.slot] * used / shape.num_experts
    pair_ops = sum(4 * layer.attention.num_heads * layer.attention.head_dim for layer in spec.layers)
    # Pages of bf16 and of int8 are multiplied in pairs of 16 bits, which run at the rate of bf16.
    in_pairs = "bfloat16" if kv_dtype in ("bfloat16", "int8") else "float32"
    return WorkPerToken(
        layer_ops, {arithmetic(head): 2.0 * head.num_rows * head.num_cols}, {in_pairs: pair_ops}, weight_bytes,
        kv_bytes,
    )  # fmt: skip
