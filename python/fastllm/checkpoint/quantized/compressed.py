"""compressed-tensors: pack-quantized (weight_packed, 4 or 8 bits), int-quantized and float-quantized (one byte each).

pack-quantized stores q + 2^(bits - 1) in words of consecutive columns, [N, K / f]; weight_scale is [N, G];
weight_zero_point, if there is one, is packed along n, [N / f, G]; weight_g_idx [K] gives the group of a column
(act-order); weight_shape [2] is the true (N, K). W[n, k] = (q - z) * s[n, g].
What the tensors say decides: format and strategy in the config are checked where they could disagree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastllm.checkpoint.config import Config
from fastllm.checkpoint.packed_format import Parameters
from fastllm.checkpoint.quantized import scaled
from fastllm.checkpoint.quantized.tensor import (
    FLOAT_DTYPES,
    SCALE_DTYPES,
    UNSIGNED,
    QuantizedRows,
    QuantizedTensor,
    array_of,
    find_part,
    floats_of,
    matrix_shape,
    unpack,
)
from fastllm.checkpoint.safetensors import Tensor
from fastllm.errors import CheckpointError

FORMATS = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision")
# Scales of activations and of the KV cache: both stay in float here.
SUFFIXES = (
    "weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape", "input_scale",
    "input_zero_point", "output_scale", "output_zero_point", "input_global_scale", "k_scale", "v_scale", "q_scale",
)  # fmt: skip


class PackedTensor(QuantizedTensor):
    def __init__(
        self, name: str, shape: tuple[int, int], bits: int, groups: int, *,
        packed: Tensor, scale: Tensor, zero_point: Tensor | None, g_idx: Tensor | None,
    ) -> None:  # fmt: skip
        super().__init__(name, shape, [packed, scale, *(part for part in (zero_point, g_idx) if part is not None)])
        self._bits, self._group_size = bits, shape[1] // groups
        self._packed, self._scale, self._zero_point, self._g_idx = packed, scale, zero_point, g_idx

    def parameters(self) -> Parameters | str:
        scales, zeros, group_of = self.load()
        if group_of is not None:
            return "act-order"
        levels = UNSIGNED[: 1 << self._bits]
        return Parameters(levels, self._group_size, self.shape[1], SCALE_DTYPES[self._scale.dtype], scales, zeros)

    def load(self) -> Any:
        scales = floats_of(self._scale).reshape(self.shape[0], -1)
        if self._zero_point is None:
            zeros = np.full_like(scales, 2 ** (self._bits - 1))
        else:
            words = array_of(self._zero_point, np.uint32)
            shape = (scales.shape[0], scales.shape[1])
            zeros = unpack(words, shape, self._bits, packs_rows=True).astype(np.float32)
        group_of = None
        if self._g_idx is not None:
            group_of = array_of(self._g_idx, np.int32)
            in_order = np.arange(len(group_of)) // self._group_size
            # All -1 is how compressed-tensors writes "not initialised".
            if (group_of == -1).all() or np.array_equal(group_of, in_order):
                group_of = None
        return scales, zeros, group_of

    def rows(self, loaded: Any, begin: int, end: int) -> QuantizedRows:
        scales, zeros, group_of = loaded
        words = np.empty((end - begin, self._packed.shape[1]), np.uint32)
        self._packed.read(begin * words.shape[1], words.data.cast("B"))
        codes = unpack(words, (end - begin, self.shape[1]), self._bits)
        return QuantizedRows(
            codes, UNSIGNED, scales[begin:end], self._group_size, group_of=group_of, zeros=zeros[begin:end]
        )


def _packed(tensors: Mapping[str, Tensor], name: str) -> PackedTensor:
    module = name.removesuffix("weight_packed")
    packed = find_part(tensors, name, ("I32", "U32"))
    num_rows, num_words = matrix_shape(packed)
    true_shape = array_of(find_part(tensors, f"{module}weight_shape", ("I64",), (2,)), np.int64)
    num_cols = int(true_shape[1])
    bits = next((b for b in (4, 8) if num_cols > 0 and -(-num_cols * b // 32) == num_words), None)
    if bits is None or int(true_shape[0]) != num_rows:
        raise CheckpointError(
            f"{packed.where}: shape is {[num_rows, num_words]}, which holds no 4-bit or 8-bit codes of the shape "
            f"{true_shape.tolist()} that weight_shape gives"
        )
    scale = find_part(tensors, f"{module}weight_scale", FLOAT_DTYPES)
    groups = scale.shape[1] if len(scale.shape) == 2 else 0
    if len(scale.shape) != 2 or scale.shape[0] != num_rows or groups == 0 or num_cols % groups != 0:
        raise CheckpointError(
            f"{scale.where}: shape is {list(scale.shape)}, expected [{num_rows}, groups that divide {num_cols}]"
        )
    zero_point = g_idx = None
    if f"{module}weight_zero_point" in tensors:
        shape = (-(-num_rows * bits // 32), groups)
        zero_point = find_part(tensors, f"{module}weight_zero_point", ("I32", "U32"), shape)
    if f"{module}weight_g_idx" in tensors:
        g_idx = find_part(tensors, f"{module}weight_g_idx", ("I32",), (num_cols,))
    return PackedTensor(
        f"{module}weight", (num_rows, num_cols), bits, groups,
        packed=packed, scale=scale, zero_point=zero_point, g_idx=g_idx,
    )  # fmt: skip


def read(config: Config, tensors: Mapping[str, Tensor]) -> dict[str, QuantizedTensor]:
    """`config` is quantization_config."""
    layout = config.str("format", default="mixed-precision")
    if layout not in FORMATS:
        raise config.unsupported("format", f"is {layout[:60]!r}; {', '.join(FORMATS)} are supported")
    block = None
    groups = config.section("config_groups")
    for name in groups.values if groups is not None else ():
        group = groups.section(name) if groups is not None else None
        weights = group.section("weights") if group is not None else None
        if weights is not None:
            block = scaled.block_size(weights, "block_structure") or block
    found: dict[str, QuantizedTensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(".weight_packed"):
            packed = _packed(tensors, name)
            found[packed.name] = packed
        elif name.endswith(".weight") and f"{name}_scale" in tensors:
            weight = find_part(tensors, name, ("I8", "F8_E4M3"))
            scale = find_part(tensors, f"{name}_scale", FLOAT_DTYPES)
            zero_point = None
            if weight.dtype == "I8" and f"{name}_zero_point" in tensors:
                zero_point = find_part(tensors, f"{name}_zero_point", ("I8",), scale.shape)
            size = scaled.block_of(weight, scale, block)
            found[name] = scaled.ScaledTensor(name, size, weight, scale, zero_point)
        elif name.endswith(".weight") and tensor.dtype in ("I8", "F8_E4M3"):
            raise CheckpointError(f"{tensor.where}: is {tensor.dtype}, but {name}_scale is missing")
    return found
