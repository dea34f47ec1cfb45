"""What all quantized formats share: codes with scales, the one arithmetic, and a tensor that decodes as it is read.

A format file reads `quantization_config`, checks the tensors of a module against each other, and makes of them a
QuantizedTensor whose rows() gives codes, scales and zeros. codes() hands them to a packed kernel as they are; where no
packed format holds them, dequantize() turns them into the float32 values that the format defines.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from fastllm import _core
from fastllm.checkpoint.files import InputFile
from fastllm.checkpoint.packed_format import F32, U8, PackedFormat, Parameters, exact_format, repack
from fastllm.checkpoint.safetensors import Tensor
from fastllm.errors import CheckpointError

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class QuantizedRows:
    """value[r, k] = ((table[codes[r, k]] - zeros[r, g]) * scales[r, g] - offsets[r, g]) * factor, in float32.

    g is group_of[k], or k // group_size. Zeros, offsets and a group index are left out where a format has none.
    """

    codes: U8  # [R, K]
    table: F32  # [256]
    scales: F32  # [R, groups]
    group_size: int = 0
    group_of: npt.NDArray[np.int32] | None = None  # [K]
    zeros: F32 | None = None
    offsets: F32 | None = None
    factor: float = 1.0

    def dequantize(self, out: F32) -> None:
        _core.dequantize(
            self.codes, self.table, self.scales, out, zeros=self.zeros, offsets=self.offsets,
            group_size=self.group_size, group_of=self.group_of, factor=self.factor,
        )  # fmt: skip


class Part(Protocol):
    """A tensor as it lies in a file."""

    @property
    def file(self) -> InputFile: ...
    @property
    def begin(self) -> int: ...
    @property
    def num_bytes(self) -> int: ...


class Rows(Protocol):
    def dequantize(self, out: F32) -> None: ...


class QuantizedTensor(ABC):
    """A float32 tensor of the model that lies quantized in the file. Read like a plain Tensor, from any thread."""

    dtype = "F32"

    def __init__(self, name: str, shape: tuple[int, ...], parts: Sequence[Part]) -> None:
        self.name = name
        self.shape = shape
        self.file: InputFile = parts[0].file
        self.begin = parts[0].begin
        self.num_bytes = sum(part.num_bytes for part in parts)
        self._lock = threading.Lock()
        self._loaded: Any = None
        self._unread = self.num_elements

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def where(self) -> str:
        return f"{self.file.label}: tensor {self.name}"

    @abstractmethod
    def load(self) -> Any:
        """What rows() needs again and again, in memory; raises CheckpointError if its values cannot be."""

    @abstractmethod
    def rows(self, loaded: Any, begin: int, end: int) -> Rows:
        """Rows [begin, end) of the tensor, all its leading dimensions taken as one."""

    def parameters(self) -> Parameters | str:
        """What a packed format must hold, or why none can. May read scales and zeros, not the codes."""
        return "its codes are no integers"

    def packed_format(self, *, fp8: bool = False) -> PackedFormat | str:
        """The smallest packed format that holds this tensor exactly, or why there is none. fp8: whether that is one."""
        needed = self.parameters()
        return needed if isinstance(needed, str) else exact_format(needed, fp8=fp8)

    def codes(self, rows: range, target: PackedFormat) -> tuple[U8, F32, U8 | None]:
        """Codes, scales and zeros of some rows, in a format that holds them exactly."""
        found = self._rows(rows.start, rows[-1] + 1, len(rows) * self.shape[-1])
        assert isinstance(found, QuantizedRows) and found.group_of is None
        each = slice(None, None, rows.step)
        return repack(
            target, np.ascontiguousarray(found.codes[each]), found.table, found.scales[each],
            None if found.zeros is None else found.zeros[each], found.group_size,
        )  # fmt: skip

    def read(self, begin: int, out: memoryview) -> None:
        """Fills `out` with the float32 values from element `begin` on."""
        num_cols = self.shape[-1]
        count = len(out) // 4
        first, last = begin // num_cols, -(-(begin + count) // num_cols)
        target: F32 = np.frombuffer(out, np.float32)
        is_whole = begin % num_cols == 0 and count % num_cols == 0
        values = target.reshape(-1, num_cols) if is_whole else np.empty((last - first, num_cols), np.float32)
        rows = self._rows(first, last, count)
        try:
            rows.dequantize(values)
        except CheckpointError as e:
            raise CheckpointError(f"{self.where}: {e}") from e
        if not is_whole:
            target[:] = values.reshape(-1)[begin - first * num_cols :][:count]

    def _rows(self, begin: int, end: int, num_elements: int) -> Rows:
        """rows(), of which the caller uses so many elements."""
        with self._lock:
            if self._loaded is None:
                self._loaded = self.load()
            loaded = self._loaded
        try:
            rows = self.rows(loaded, begin, end)
        except CheckpointError as e:
            raise CheckpointError(f"{self.where}: {e}") from e
        with self._lock:
            self._unread -= num_elements
            if self._unread <= 0:  # packed tensors need not stay until the last layer is loaded
                self._loaded = None
        return rows


# Codes as integers: what the table of such a format holds.
UNSIGNED: F32 = np.arange(256, dtype=np.float32)
SIGNED: F32 = np.arange(256, dtype=np.uint8).view(np.int8).astype(np.float32)


def find_part(
    tensors: Mapping[str, Tensor], name: str, dtypes: Collection[str], shape: tuple[int, ...] | None = None
) -> Tensor:
    """The tensor of that name, with its type and, where it is known already, its shape; CheckpointError otherwise."""
    tensor = tensors.get(name)
    if tensor is None:
        file = next(iter(tensors.values())).file.label
        raise CheckpointError(f"{file}: tensor {name} is missing, the quantized weight needs it")
    if tensor.dtype not in dtypes:
        raise CheckpointError(f"{tensor.where}: dtype is {tensor.dtype}, expected {' or '.join(dtypes)}")
    if shape is not None and tensor.shape != shape:
        raise CheckpointError(f"{tensor.where}: shape is {list(tensor.shape)}, expected {list(shape)}")
    return tensor


def matrix_shape(tensor: Tensor) -> tuple[int, int]:
    """Its two sizes; CheckpointError if it has not two, or is empty."""
    if len(tensor.shape) != 2 or 0 in tensor.shape:
        raise CheckpointError(f"{tensor.where}: shape is {list(tensor.shape)}, expected two sizes of at least 1")
    return tensor.shape[0], tensor.shape[1]


def array_of(tensor: Tensor, dtype: Any) -> Array:
    """The tensor in memory, its bytes taken as `dtype`."""
    return np.frombuffer(tensor.bytes(), dtype).reshape(tensor.shape)


def read_rows(tensor: Tensor, begin: int, end: int, num_cols: int) -> U8:
    """Rows of a tensor of bytes."""
    codes = np.empty((end - begin, num_cols), np.uint8)
    tensor.read(begin * num_cols, codes.data.cast("B"))
    return codes


FLOAT_DTYPES = ("F32", "BF16", "F16")
# A scale of these types is one of the packed formats; float32 may be.
SCALE_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": None}


def floats_of(tensor: Tensor) -> F32:
    """The tensor as float32, which holds each of its types; refuses infinity and NaN."""
    if tensor.dtype == "BF16":
        values = (array_of(tensor, np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        values = array_of(tensor, {"F32": np.float32, "F16": np.float16}[tensor.dtype]).astype(np.float32)
    is_finite = np.isfinite(values)
    if not is_finite.all():
        at = int(np.argmin(is_finite))
        raise CheckpointError(f"{tensor.where}: element {at} is {values.flat[at]}, expected a finite number")
    return values


def unpack(
    words: Array, out_shape: tuple[int, int], bits: int, *, packs_rows: bool = False, transpose: bool = False,
    positions: Sequence[int] | None = None,
) -> U8:  # fmt: skip
    """Codes of 4 or 8 bits out of 32-bit words, lowest bits first unless `positions` says otherwise."""
    out = np.empty(out_shape, np.uint8)
    order = list(range(32 // bits)) if positions is None else list(positions)
    _core.unpack_codes(words, out, bits=bits, positions=order, packs_rows=packs_rows, transpose=transpose)
    return out


def transposed(values: F32) -> F32:
    return np.ascontiguousarray(values.T)
