"""Weights of one byte per element, int8 or FP8 E4M3, with scales: W[n, k] = (code - zero) * scale[n // bn, k // bk].

HF's fine-grained FP8 (weight, weight_scale_inv, blocks of 128 x 128) and the int-quantized, float-quantized and
naive-quantized forms of compressed-tensors are cases of it. The shape of the scales says how many there are: one for
the tensor, one per row, per group of columns, or per block.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastllm.checkpoint.config import Config
from fastllm.checkpoint.packed_format import E4M3, Parameters
from fastllm.checkpoint.quantized.tensor import (
    FLOAT_DTYPES,
    SCALE_DTYPES,
    SIGNED,
    Array,
    QuantizedRows,
    QuantizedTensor,
    array_of,
    find_part,
    floats_of,
    matrix_shape,
    read_rows,
)
from fastllm.checkpoint.safetensors import Tensor
from fastllm.errors import CheckpointError

TABLES = {"I8": SIGNED, "F8_E4M3": E4M3}
SUFFIXES = ("weight_scale_inv", "weight_scale", "input_scale", "activation_scale")  # activations stay in float here


class ScaledTensor(QuantizedTensor):
    """`block` = (bn, bk): rows and columns that share a scale."""

    def __init__(
        self, name: str, block: tuple[int, int], weight: Tensor, scale: Tensor, zero_point: Tensor | None = None
    ) -> None:
        super().__init__(name, weight.shape, [weight, scale, *([zero_point] if zero_point is not None else [])])
        self._block, self._weight, self._scale, self._zero_point = block, weight, scale, zero_point

    def _per_row(self, values: Array, begin: int, end: int) -> Array:
        """Rows of a [N / bn, K / bk] matrix, one per row of the weight."""
        matrix = values.reshape(-(-self.shape[0] // self._block[0]), -1)
        return np.ascontiguousarray(matrix[np.arange(begin, end) // self._block[0]])

    def parameters(self) -> Parameters:
        scales, zeros = self.load()
        table = TABLES[self._weight.dtype]
        return Parameters(table, self._block[1], self.shape[1], SCALE_DTYPES[self._scale.dtype], scales, zeros)

    def load(self) -> Any:
        zeros = None if self._zero_point is None else array_of(self._zero_point, np.int8).astype(np.float32)
        return floats_of(self._scale), zeros

    def rows(self, loaded: Any, begin: int, end: int) -> QuantizedRows:
        scales, zeros = loaded
        codes = read_rows(self._weight, begin, end, self.shape[1])
        if self._weight.dtype == "F8_E4M3" and ((codes & 0x7F) == 0x7F).any():
            raise CheckpointError("holds NaN")
        return QuantizedRows(
            codes, TABLES[self._weight.dtype], self._per_row(scales, begin, end), self._block[1],
            zeros=None if zeros is None else self._per_row(zeros, begin, end),
        )  # fmt: skip


def block_of(weight: Tensor, scale: Tensor, block: tuple[int, int] | None) -> tuple[int, int]:
    """Rows and columns per scale, from the shape of the scales and the block size of the config, if it has one."""
    num_rows, num_cols = matrix_shape(weight)
    shape = scale.shape
    if shape in ((), (1,), (1, 1)):
        return num_rows, num_cols
    if shape in ((num_rows,), (num_rows, 1)):
        return 1, num_cols
    if block is not None and shape == (-(-num_rows // block[0]), -(-num_cols // block[1])):
        return block
    if len(shape) == 2 and shape[0] == num_rows and shape[1] > 0 and num_cols % shape[1] == 0:
        return 1, num_cols // shape[1]
    blocks = "" if block is None else f" or {[-(-num_rows // block[0]), -(-num_cols // block[1])]}"
    raise CheckpointError(
        f"{scale.where}: shape is {list(shape)}, expected one scale, [{num_rows}, 1], [{num_rows}, groups]{blocks} "
        f"for a weight of {[num_rows, num_cols]}"
    )


def block_size(config: Config, key: str) -> tuple[int, int] | None:
    if not config.has(key):
        return None
    sizes = config.ints(key, 1, 1 << 20)
    if len(sizes) != 2:
        raise config.wrong(key, f"has {len(sizes)} entries, expected 2")
    return sizes[0], sizes[1]


def read(config: Config, tensors: Mapping[str, Tensor]) -> dict[str, QuantizedTensor]:
    """HF's method "fp8": weight_scale_inv, or weight_scale as AutoFP8 has it. `config` is quantization_config."""
    block = block_size(config, "weight_block_size")
    found: dict[str, QuantizedTensor] = {}
    for name in [name for name in tensors if name.endswith((".weight_scale_inv", ".weight_scale"))]:
        weight_name = name.removesuffix("_inv").removesuffix("_scale")
        weight = find_part(tensors, weight_name, ("F8_E4M3",))
        scale = find_part(tensors, name, FLOAT_DTYPES)
        found[weight_name] = ScaledTensor(weight_name, block_of(weight, scale, block), weight, scale)
    for name, tensor in tensors.items():
        if tensor.dtype == "F8_E4M3" and name not in found:
            raise CheckpointError(f"{tensor.where}: is F8_E4M3, but {name}_scale_inv is missing")
    return found
