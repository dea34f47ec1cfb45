"""AWQ, layout "gemm": qweight [K, N / 8] holds eight 4-bit codes of rows n in a word, in the order 0 2 4 6 1 3 5 7.

W[n, k] = (q - z) * s[k // group_size, n]; qzeros [G, N / 8] is packed in the same order, scales are [G, N].
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastllm.checkpoint.config import Config
from fastllm.checkpoint.packed_format import F32, Parameters
from fastllm.checkpoint.quantized.tensor import (
    SCALE_DTYPES,
    UNSIGNED,
    QuantizedRows,
    QuantizedTensor,
    array_of,
    find_part,
    floats_of,
    matrix_shape,
    transposed,
    unpack,
)
from fastllm.checkpoint.safetensors import Tensor
from fastllm.errors import CheckpointError

PER_WORD = 8
# Row 8 b + j of W lies in word b at this place: the inverse of the order above.
POSITIONS = (0, 4, 1, 5, 2, 6, 3, 7)
SUFFIXES = ("qweight", "qzeros", "scales")


class AwqTensor(QuantizedTensor):
    def __init__(
        self, name: str, shape: tuple[int, int], group_size: int, qweight: Tensor, qzeros: Tensor, scales: Tensor
    ) -> None:
        super().__init__(name, shape, [qweight, qzeros, scales])
        self._group_size, self._qweight, self._qzeros, self._scales = group_size, qweight, qzeros, scales

    def parameters(self) -> Parameters:
        scales, zeros = self._scales_and_zeros()
        dtype = SCALE_DTYPES[self._scales.dtype]
        return Parameters(UNSIGNED[:16], self._group_size, self.shape[1], dtype, scales, zeros)

    def load(self) -> Any:
        return array_of(self._qweight, np.uint32), *self._scales_and_zeros()

    def _scales_and_zeros(self) -> tuple[F32, F32]:
        scales = transposed(floats_of(self._scales))
        words = array_of(self._qzeros, np.uint32)
        shape = (scales.shape[0], scales.shape[1])
        zeros = unpack(words, shape, 4, transpose=True, positions=POSITIONS)
        return scales, zeros.astype(np.float32)

    def rows(self, loaded: Any, begin: int, end: int) -> QuantizedRows:
        words, scales, zeros = loaded
        # Whole words: at most seven rows more on either side.
        first, last = begin // PER_WORD, -(-end // PER_WORD)
        shape = ((last - first) * PER_WORD, self.shape[1])
        codes = unpack(words[:, first:last], shape, 4, transpose=True, positions=POSITIONS)
        codes = codes[begin - first * PER_WORD :][: end - begin]
        return QuantizedRows(codes, UNSIGNED, scales[begin:end], self._group_size, zeros=zeros[begin:end])


def read(config: Config, tensors: Mapping[str, Tensor]) -> dict[str, QuantizedTensor]:
    """`config` is quantization_config."""
    bits = config.int("bits", "w_bit", min=1, max=64)
    if bits != 4:
        raise config.unsupported("bits", f"is {bits}; AWQ has 4")
    version = config.str("version", default="gemm").lower()
    if version != "gemm":
        raise config.unsupported("version", f"is {version[:40]!r}; gemm is supported")
    wanted = config.int("group_size", "q_group_size", min=-1, max=1 << 24)
    found: dict[str, QuantizedTensor] = {}
    for name in [name for name in tensors if name.endswith(".qweight")]:
        module = name.removesuffix("qweight")
        qweight = find_part(tensors, name, ("I32", "U32"))
        num_cols, num_words = matrix_shape(qweight)
        group_size = num_cols if wanted == -1 else wanted
        if group_size < 1 or num_cols % group_size != 0:
            raise CheckpointError(f"{qweight.where}: group_size = {group_size} does not divide its {num_cols} columns")
        groups = num_cols // group_size
        found[f"{module}weight"] = AwqTensor(
            f"{module}weight", (num_words * PER_WORD, num_cols), group_size, qweight,
            find_part(tensors, f"{module}qzeros", ("I32", "U32"), (groups, num_words)),
            find_part(tensors, f"{module}scales", ("F16", "BF16", "F32"), (groups, num_words * PER_WORD)),
        )  # fmt: skip
    return found
