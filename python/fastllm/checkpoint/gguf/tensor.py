"""A GGUF tensor under the name and in the order of rows that the model's family knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fastllm.checkpoint.gguf import blocks
from fastllm.checkpoint.gguf.reader import GgufTensor
from fastllm.checkpoint.packed_format import F32, U8, Parameters
from fastllm.checkpoint.quantized.tensor import QuantizedRows, QuantizedTensor

Order = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class FloatRows:
    values: F32

    def dequantize(self, out: F32) -> None:
        out[...] = self.values


def interleaved_rows(num_heads: int, head_dim: int) -> Order:
    """Which row of the file is row i of the weight: the llama architecture's q and k have the two halves of each head
    interleaved, for a rotation of neighbours instead of halves."""
    head, j = np.divmod(np.arange(num_heads * head_dim), head_dim)
    order: Order = head * head_dim + j % (head_dim // 2) * 2 + j // (head_dim // 2)
    return order


class GgufSource(QuantizedTensor):
    """Rows of `tensor` from `first_row` on, in `order` if it is given; `add` is added (Gemma's norms are saved + 1)."""

    def __init__(
        self, tensor: GgufTensor, shape: tuple[int, ...], *,
        first_row: int = 0, order: Order | None = None, add: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(tensor.name, shape, [tensor])
        self._tensor, self._first_row, self._order, self._add = tensor, first_row, order, add
        self.begin = tensor.begin + first_row * tensor.row_bytes
        self.num_bytes = self.num_elements // tensor.type.elements * tensor.type.num_bytes

    def parameters(self) -> Parameters | str:
        return blocks.parameters_of(self._tensor.type.name, self.shape[-1])

    def load(self) -> bool:
        return True  # a piece is read when it is asked for

    def rows(self, loaded: Any, begin: int, end: int) -> QuantizedRows | FloatRows:
        if self._order is None:
            return self._decode(self._bytes(begin, end))
        wanted = self._order[begin:end]
        first = int(wanted.min())
        return self._decode(self._bytes(first, int(wanted.max()) + 1)[wanted - first])

    def _bytes(self, begin: int, end: int) -> U8:
        size = self._tensor.row_bytes
        data = np.empty((end - begin, size), np.uint8)
        self._tensor.file.read_into(self._tensor.begin + (self._first_row + begin) * size, data.data.cast("B"))
        return data

    def _decode(self, data: U8) -> QuantizedRows | FloatRows:
        kind = self._tensor.type.name
        if kind in blocks.FORMATS:
            return blocks.rows_of(kind, data, len(data), self._tensor.type.num_bytes)
        if kind == "BF16":
            values = (data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        else:
            values = data.view(np.float32 if kind == "F32" else np.float16).astype(np.float32)
        return FloatRows(values + np.float32(self._add) if self._add else values)
