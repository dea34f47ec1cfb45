"""bitsandbytes: nf4 and fp4 in blocks of the flattened weight, and int8 by rows (LLM.int8()).

4 bits: weight [N * K / 2, 1] of bytes, the first of two elements in the high half; W = quant_map[code] * absmax[block].
With double quantization absmax is itself bytes: absmax = nested_quant_map[byte] * nested_absmax[block] + nested_offset.
Sizes stand in a JSON text saved as a tensor, quant_state.bitsandbytes__nf4. 8 bits: W = code * SCB[n] * (1 / 127).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastllm.checkpoint.config import Config
from fastllm.checkpoint.files import parse_json_object
from fastllm.checkpoint.packed_format import F32
from fastllm.checkpoint.quantized.tensor import (
    SIGNED,
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

KINDS = ("nf4", "fp4")
STATE = ".weight.quant_state.bitsandbytes__"
SUFFIXES = (
    "weight.absmax", "weight.quant_map", "weight.nested_absmax", "weight.nested_quant_map", "SCB", "weight_format",
    *(f"weight.quant_state.bitsandbytes__{kind}" for kind in KINDS),
)  # fmt: skip
# The library multiplies by this constant, which is 1 / 127 in float32.
PER_127 = 7.874015718698502e-3
MAX_STATE_BYTES = 1 << 16


class FourBitTensor(QuantizedTensor):
    """Rows of it need not begin at a block, so a piece is decoded as whole blocks and cut."""

    def __init__(self, name: str, shape: tuple[int, int], state: Config, weight: Tensor, parts: list[Tensor]) -> None:
        super().__init__(name, shape, [weight, *parts])
        self._weight = weight
        self._quant_map, self._absmax, *self._nested = parts
        self._block_size = state.int("blocksize", min=1, max=1 << 20)
        num_blocks = -(-self.num_elements // self._block_size)
        if self._absmax.num_elements != num_blocks:
            raise CheckpointError(
                f"{self._absmax.where}: has {self._absmax.num_elements} elements, expected {num_blocks} blocks"
            )
        if self._nested:
            self._nested_size = state.int("nested_blocksize", min=1, max=1 << 20)
            self._offset = state.float("nested_offset")
            expected = -(-num_blocks // self._nested_size)
            if self._nested[0].num_elements != expected:
                raise CheckpointError(
                    f"{self._nested[0].where}: has {self._nested[0].num_elements} elements, expected {expected} blocks"
                )

    def load(self) -> Any:
        table = np.zeros(256, np.float32)
        table[:16] = floats_of(self._quant_map)
        if not self._nested:
            return table, floats_of(self._absmax).reshape(-1)
        nested_absmax, nested_map = (floats_of(part).reshape(-1) for part in self._nested)
        codes = array_of(self._absmax, np.uint8).reshape(-1)
        blocks = np.arange(len(codes)) // self._nested_size
        # Two roundings to float32, as in the library.
        with np.errstate(over="ignore"):
            absmax = nested_map[codes] * nested_absmax[blocks] + np.float32(self._offset)
        if not np.isfinite(absmax).all():
            raise CheckpointError(f"{self._absmax.where}: with its second quantization it is not finite")
        return table, absmax

    def rows(self, loaded: Any, begin: int, end: int) -> QuantizedRows:
        table, absmax = loaded
        first, last = begin * self.shape[1], end * self.shape[1]
        # Bytes hold two elements; the row may begin in the middle of one.
        packed = np.empty(-(-last // 2) - first // 2, np.uint8)
        self._weight.read(first // 2, packed.data)
        codes = np.empty((len(packed), 2), np.uint8)
        codes[:, 0], codes[:, 1] = packed >> 4, packed & 15
        flat = codes.reshape(-1)[first % 2 :][: last - first]
        if self.shape[1] % self._block_size == 0:
            per_row = self.shape[1] // self._block_size
            scales = absmax[begin * per_row : end * per_row].reshape(end - begin, per_row)
            return QuantizedRows(flat.reshape(end - begin, -1), table, scales, self._block_size)
        # A block that goes on in the next row: one scale per element.
        scales = absmax[np.arange(first, last) // self._block_size].reshape(end - begin, -1)
        return QuantizedRows(np.ascontiguousarray(flat.reshape(end - begin, -1)), table, scales, 1)


class Int8Tensor(QuantizedTensor):
    def __init__(self, name: str, weight: Tensor, scb: Tensor) -> None:
        super().__init__(name, weight.shape, [weight, scb])
        self._weight, self._scb = weight, scb

    def parameters(self) -> str:
        return "its scale is rounded twice"

    def load(self) -> F32:
        return floats_of(self._scb).reshape(-1, 1)

    def rows(self, loaded: F32, begin: int, end: int) -> QuantizedRows:
        codes = read_rows(self._weight, begin, end, self.shape[1])
        return QuantizedRows(codes, SIGNED, loaded[begin:end], self.shape[1], factor=PER_127)


def _four_bit(tensors: Mapping[str, Tensor], state_tensor: Tensor, kind: str) -> FourBitTensor:
    name = state_tensor.name.removesuffix(f".quant_state.bitsandbytes__{kind}")
    if state_tensor.dtype != "U8" or state_tensor.num_bytes > MAX_STATE_BYTES:
        raise CheckpointError(f"{state_tensor.where}: expected at most {MAX_STATE_BYTES} bytes of JSON as U8")
    values = parse_json_object(bytes(state_tensor.bytes()), state_tensor.where)
    state = Config(values, state_tensor.where)
    found_kind = state.str("quant_type")
    if found_kind != kind:
        raise state.wrong("quant_type", f"is {found_kind[:40]!r}, expected {kind!r}")
    shape = state.ints("shape", 1, 2**31 - 1)
    weight = find_part(tensors, name, ("U8",))
    if len(shape) != 2 or weight.num_bytes != -(-shape[0] * shape[1] // 2):
        raise CheckpointError(
            f"{weight.where}: has {weight.num_bytes} bytes, expected half a byte per element of {shape}"
        )
    is_nested = f"{name}.nested_absmax" in tensors
    parts = [
        find_part(tensors, f"{name}.quant_map", ("F32",), (16,)),
        find_part(tensors, f"{name}.absmax", ("U8",) if is_nested else ("F32",)),
    ]
    if is_nested:
        parts.append(find_part(tensors, f"{name}.nested_absmax", ("F32",)))
        parts.append(find_part(tensors, f"{name}.nested_quant_map", ("F32",), (256,)))
    return FourBitTensor(name, (shape[0], shape[1]), state, weight, parts)


def read(config: Config, tensors: Mapping[str, Tensor]) -> dict[str, QuantizedTensor]:
    """`config` is quantization_config."""
    del config  # the tensors say it all
    found: dict[str, QuantizedTensor] = {}
    for name, tensor in tensors.items():
        kind = name.partition(STATE)[2]
        if kind:
            if kind not in KINDS:
                raise CheckpointError(f"{tensor.where}: 4-bit type {kind[:40]!r} is not known ({', '.join(KINDS)} are)")
            four_bit = _four_bit(tensors, tensor, kind)
            found[four_bit.name] = four_bit
        elif name.endswith(".SCB"):
            weight_name = f"{name.removesuffix('SCB')}weight"
            weight = find_part(tensors, weight_name, ("I8",))
            scb = find_part(tensors, name, ("F32",), (matrix_shape(weight)[0],))
            found[weight_name] = Int8Tensor(weight_name, weight, scb)
    for name, tensor in tensors.items():
        if name.endswith(".weight") and name not in found and tensor.dtype in ("U8", "I8"):
            raise CheckpointError(f"{tensor.where}: is {tensor.dtype}, but the tensors that say its scales are missing")
    return found
