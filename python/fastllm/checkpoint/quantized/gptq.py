"""GPTQ: qweight [K / f, N] holds f = 32 / bits codes of consecutive columns k in a word; a scale and a zero per group.

W[n, k] = (q - z) * s[g, n] with g = g_idx[k] (act-order), or k // group_size without g_idx. qzeros [G, N / f] is packed
along n. The first layout ("gptq") stores z - 1, the second ("gptq_v2") stores z.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastllm.checkpoint.config import Config
from fastllm.checkpoint.packed_format import Parameters
from fastllm.checkpoint.quantized.tensor import (
    SCALE_DTYPES,
    UNSIGNED,
    Array,
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


class GptqTensor(QuantizedTensor):
    def __init__(
        self, name: str, shape: tuple[int, int], bits: int, group_size: int, stored_zero: int, *,
        qweight: Tensor, qzeros: Tensor, scales: Tensor, g_idx: Tensor | None,
    ) -> None:  # fmt: skip
        parts = [qweight, qzeros, scales, *([g_idx] if g_idx is not None else [])]
        super().__init__(name, shape, parts)
        self._bits, self._group_size, self._stored_zero = bits, group_size, stored_zero
        self._qweight, self._qzeros, self._scales, self._g_idx = qweight, qzeros, scales, g_idx

    def parameters(self) -> Parameters | str:
        scales, zeros, group_of = self._scales_and_zeros()
        if group_of is not None:
            return "act-order"
        levels = UNSIGNED[: 1 << self._bits]
        return Parameters(levels, self._group_size, self.shape[1], SCALE_DTYPES[self._scales.dtype], scales, zeros)

    def load(self) -> tuple[Array, Any, Any, Any]:
        return array_of(self._qweight, np.uint32), *self._scales_and_zeros()

    def _scales_and_zeros(self) -> tuple[Any, Any, Any]:
        num_rows, _ = self.shape
        scales = transposed(floats_of(self._scales))
        zeros = unpack(array_of(self._qzeros, np.uint32), (num_rows, scales.shape[1]), self._bits, transpose=True)
        stored = zeros.astype(np.float32) + np.float32(1 - self._stored_zero)
        return scales, stored, self._group_index(scales.shape[1])

    def _group_index(self, num_groups: int) -> Any:
        """g_idx, or None where it says what group_size says."""
        if self._g_idx is None:
            return None
        g_idx = array_of(self._g_idx, np.int32)
        is_wrong = (g_idx < 0) | (g_idx >= num_groups)
        if is_wrong.any():
            at = int(np.argmax(is_wrong))
            raise CheckpointError(
                f"{self._g_idx.where}: element {at} is {g_idx[at]}, expected a group in [0, {num_groups})"
            )
        return None if np.array_equal(g_idx, np.arange(len(g_idx)) // self._group_size) else g_idx

    def rows(self, loaded: Any, begin: int, end: int) -> QuantizedRows:
        words, scales, zeros, group_of = loaded
        shape = (end - begin, self.shape[1])
        codes = unpack(words[:, begin:end], shape, self._bits, packs_rows=True, transpose=True)
        return QuantizedRows(
            codes, UNSIGNED, scales[begin:end], self._group_size, group_of=group_of, zeros=zeros[begin:end]
        )


def read(config: Config, tensors: Mapping[str, Tensor]) -> dict[str, QuantizedTensor]:
    """`config` is quantization_config."""
    bits = config.int("bits", "w_bit", min=1, max=64)
    if bits not in (4, 8):
        raise config.unsupported("bits", f"is {bits}; 4 and 8 are supported")
    wanted = config.int("group_size", "q_group_size", min=-1, max=1 << 24)
    if wanted == 0:
        raise config.wrong("group_size", "is 0, expected -1 or at least 1")
    needs_index = config.bool("desc_act", default=False)
    layout = config.str("checkpoint_format", default="gptq")
    if layout not in ("gptq", "gptq_v2"):
        raise config.unsupported("checkpoint_format", f"is {layout!r}; gptq and gptq_v2 are supported")
    per_word = 32 // bits
    found: dict[str, QuantizedTensor] = {}
    for name in [name for name in tensors if name.endswith(".qweight")]:
        module = name.removesuffix("qweight")
        qweight = find_part(tensors, name, ("I32", "U32"))
        num_words, num_rows = matrix_shape(qweight)
        num_cols = num_words * per_word
        group_size = num_cols if wanted == -1 else min(wanted, num_cols)
        if num_cols % group_size != 0:
            raise CheckpointError(f"{qweight.where}: group_size = {group_size} does not divide its {num_cols} columns")
        if num_rows % per_word != 0:
            raise CheckpointError(f"{qweight.where}: has {num_rows} rows, expected a multiple of {per_word}")
        groups = num_cols // group_size
        is_indexed = needs_index or f"{module}g_idx" in tensors
        found[f"{module}weight"] = GptqTensor(
            f"{module}weight", (num_rows, num_cols), bits, group_size, 0 if layout == "gptq" else 1,
            qweight=qweight,
            qzeros=find_part(tensors, f"{module}qzeros", ("I32", "U32"), (groups, num_rows // per_word)),
            scales=find_part(tensors, f"{module}scales", ("F16", "BF16", "F32"), (groups, num_rows)),
            g_idx=find_part(tensors, f"{module}g_idx", ("I32",), (num_cols,)) if is_indexed else None,
        )  # fmt: skip
    return found


# What belongs to a weight X.weight, beside what is named like it.
SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")
