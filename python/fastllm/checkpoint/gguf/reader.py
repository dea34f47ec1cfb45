"""Reader of GGUF files, versions 2 and 3: magic, counts, typed metadata, tensor table, aligned data.

Nothing is believed: each count and length is compared with what is left of the file before anything is allocated, each
tensor's span with the size of the file, and spans may not overlap. Files in several parts are refused.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fastllm.checkpoint.files import InputFile
from fastllm.errors import CheckpointError, UnsupportedModelError

MAX_KEYS = 65536
MAX_TENSORS = 100_000
MAX_STRINGS = 4_000_000  # in one array: the largest vocabularies have 0.3 million tokens
MAX_NAME_BYTES = 1024
MAX_DEPTH = 2  # of arrays in arrays
WINDOW = 1 << 20


class BlockType(NamedTuple):
    name: str
    elements: int
    num_bytes: int


# ggml's numbers of the types that are read here: elements and bytes of a block.
TYPES = {
    0: BlockType("F32", 1, 4), 1: BlockType("F16", 1, 2), 30: BlockType("BF16", 1, 2),
    2: BlockType("Q4_0", 32, 18), 3: BlockType("Q4_1", 32, 20), 6: BlockType("Q5_0", 32, 22),
    7: BlockType("Q5_1", 32, 24), 8: BlockType("Q8_0", 32, 34), 10: BlockType("Q2_K", 256, 84),
    11: BlockType("Q3_K", 256, 110), 12: BlockType("Q4_K", 256, 144), 13: BlockType("Q5_K", 256, 176),
    14: BlockType("Q6_K", 256, 210), 20: BlockType("IQ4_NL", 32, 18), 39: BlockType("MXFP4", 32, 17),
}  # fmt: skip
_SCALARS = {0: "<u1", 1: "<i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", 7: "?", 10: "<u8", 11: "<i8",
            12: "<f8"}  # fmt: skip
_STRING, _ARRAY = 8, 9


class GgufTensor(NamedTuple):
    """Where a tensor lies. `shape` is in numpy's order: the last size is that of a row."""

    file: InputFile
    name: str
    type: BlockType
    shape: tuple[int, ...]
    begin: int
    num_bytes: int

    @property
    def where(self) -> str:
        return f"{self.file.label}: tensor {self.name}"

    @property
    def row_bytes(self) -> int:
        return self.shape[-1] // self.type.elements * self.type.num_bytes


class _Cursor:
    """Reads forward through the head of the file, a window at a time."""

    def __init__(self, file: InputFile) -> None:
        self._file = file
        self._begin, self._window = 0, b""
        self.at = 0

    def wrong(self, finding: str) -> CheckpointError:
        return CheckpointError(f"{self._file.label}: {finding}")

    @property
    def left(self) -> int:
        return self._file.size - self.at

    def take(self, size: int, what: str) -> bytes:
        if size > self.left:
            raise self.wrong(f"{what} needs {size} bytes at byte {self.at}, {self.left} are left; is it truncated?")
        offset = self.at - self._begin
        if offset + size > len(self._window):
            self._begin, offset = self.at, 0
            self._window = self._file.read(self.at, min(max(size, WINDOW), self.left))
        self.at += size
        return self._window[offset : offset + size]

    def u32(self, what: str) -> int:
        return int(struct.unpack("<I", self.take(4, what))[0])

    def u64(self, what: str) -> int:
        return int(struct.unpack("<Q", self.take(8, what))[0])

    def text(self, what: str) -> str:
        return self.take(self.u64(what), what).decode("utf-8", "replace")

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind == _STRING:
            return self.text(what)
        if kind == _ARRAY:
            return self._array(what, depth)
        if kind not in _SCALARS:
            raise self.wrong(f"{what}: value type {kind} is not known")
        dtype = np.dtype(_SCALARS[kind])
        return np.frombuffer(self.take(dtype.itemsize, what), dtype)[0].item()

    def _array(self, what: str, depth: int) -> Any:
        kind, count = self.u32(what), self.u64(what)
        if kind in _SCALARS:
            dtype = np.dtype(_SCALARS[kind])
            return np.frombuffer(self.take(count * dtype.itemsize, what), dtype)
        if depth >= MAX_DEPTH:
            raise self.wrong(f"{what}: arrays are nested more than {MAX_DEPTH} deep")
        if count > min(MAX_STRINGS, self.left // 8):
            raise self.wrong(f"{what}: an array of {count} entries, {self.left} bytes are left (limit {MAX_STRINGS})")
        return [self.value(kind, what, depth + 1) for _ in range(count)]


class GgufFile(NamedTuple):
    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


def read(path: Path) -> GgufFile:
    """Metadata and tensor table of a GGUF file, everything checked; raises CheckpointError, UnsupportedModelError."""
    file = InputFile(path, str(path))
    cursor = _Cursor(file)
    magic = cursor.take(4, "the magic")
    if magic != b"GGUF":
        raise cursor.wrong(f"begins with {magic!r}, expected b'GGUF'")
    version = cursor.u32("the version")
    if version not in (2, 3):
        raise UnsupportedModelError(f"{path}: GGUF version {version}; 2 and 3 are supported (little-endian)")
    num_tensors, num_keys = cursor.u64("the number of tensors"), cursor.u64("the number of keys")
    for count, limit, what in ((num_tensors, MAX_TENSORS, "tensors"), (num_keys, MAX_KEYS, "keys")):
        if count > limit:
            raise cursor.wrong(f"says it has {count} {what}, at most {limit} are read")
    metadata: dict[str, Any] = {}
    for i in range(num_keys):
        key = cursor.text(f"key {i}")
        if len(key) > MAX_NAME_BYTES or key in metadata:
            raise cursor.wrong(f"key {key[:80]!r} is {'given twice' if key in metadata else 'too long'}")
        metadata[key] = cursor.value(cursor.u32(key), f"metadata {key[:80]}")
    if metadata.get("split.count", 1) not in (0, 1):
        raise UnsupportedModelError(
            f"{path}: is one of {metadata['split.count']} parts; merge them (gguf-split --merge)"
        )
    entries = [_entry(cursor, i) for i in range(num_tensors)]
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment not in (1 << i for i in range(3, 21)):
        raise cursor.wrong(f"metadata general.alignment is {alignment!r}, expected a power of two from 8 on")
    begin = -(-cursor.at // alignment) * alignment
    return GgufFile(path, metadata, _placed(file, entries, begin, alignment))


def _entry(cursor: _Cursor, i: int) -> tuple[str, BlockType, tuple[int, ...], int]:
    name = cursor.text(f"tensor {i}")
    what = f"tensor {name[:80]}"
    num_dims = cursor.u32(what)
    if not 1 <= num_dims <= 4 or len(name) > MAX_NAME_BYTES:
        raise cursor.wrong(
            f"{what}: has {num_dims} dimensions, expected 1 to 4, and a name of at most {MAX_NAME_BYTES}"
        )
    shape = tuple(cursor.u64(what) for _ in range(num_dims))[::-1]
    number, offset = cursor.u32(what), cursor.u64(what)
    kind = TYPES.get(number)
    if kind is None:
        known = ", ".join(t.name for t in TYPES.values())
        raise UnsupportedModelError(f"{cursor.wrong(what)}: type {number} is not supported; {known} are")
    if 0 in shape or max(shape) >= 2**63 or shape[-1] % kind.elements != 0:
        raise cursor.wrong(f"{what}: shape is {list(shape)}, expected rows of a multiple of {kind.elements} elements")
    return name, kind, shape, offset


def _placed(
    file: InputFile, entries: list[tuple[str, BlockType, tuple[int, ...], int]], begin: int, alignment: int
) -> dict[str, GgufTensor]:
    tensors: dict[str, GgufTensor] = {}
    for name, kind, shape, offset in entries:
        num_bytes = math.prod(shape) // kind.elements * kind.num_bytes  # Python integers do not overflow
        tensor = GgufTensor(file, name, kind, shape, begin + offset, num_bytes)
        if name in tensors:
            raise CheckpointError(f"{tensor.where}: is given twice")
        if offset % alignment != 0:
            raise CheckpointError(f"{tensor.where}: offset {offset} is not a multiple of the alignment, {alignment}")
        if tensor.begin + num_bytes > file.size:
            raise CheckpointError(
                f"{tensor.where}: {kind.name} of shape {list(shape)} at byte {tensor.begin} has {num_bytes} bytes, the "
                f"file {file.size}; is it truncated?"
            )
        tensors[name] = tensor
    end = 0
    for tensor in sorted(tensors.values(), key=lambda t: t.begin):
        if tensor.begin < end:
            raise CheckpointError(f"{tensor.where}: at byte {tensor.begin} overlaps the tensor before it")
        end = tensor.begin + tensor.num_bytes
    return tensors
