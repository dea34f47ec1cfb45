"""Reader of safetensors files: 8 bytes of length N, N bytes of JSON header, tensor bytes.

Every rule of the format is checked against the size of the file before any tensor is handed out: header at most 100 MB
and a JSON object without duplicate keys, known dtypes, sizes not negative, product of sizes equal to the bytes spanned,
spans contiguous from 0 to the end of the file without gaps or overlaps.

Bytes are read, not mapped: a file that is cut short or a disk that fails while we read gives an exception, where a
mapping would kill the process, and no page of the source counts as memory of this process.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from fastllm.checkpoint.files import InputFile, parse_json_object
from fastllm.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 250_000  # per file; keeps the reading of a hostile header within about two seconds
MAX_DIMS = 8
MAX_NAME_BYTES = 4096
MAX_SIZE = 2**63 - 1

BITS = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8,
    "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8, "C64": 64,
    "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F6_E2M3": 6, "F6_E3M2": 6, "F4": 4,
}  # fmt: skip


class Tensor(NamedTuple):
    """Where a tensor lies in its file."""

    file: InputFile
    name: str
    dtype: str  # as the file spells it: "F32", "BF16", ...
    shape: tuple[int, ...]
    begin: int  # bytes from the start of the file
    num_bytes: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def where(self) -> str:
        return f"{self.file.label}: tensor {self.name}"

    def read(self, begin: int, out: memoryview) -> None:
        """Fills `out` with the bytes from element `begin` on. The type has whole bytes."""
        self.file.read_into(self.begin + begin * BITS[self.dtype] // 8, out)

    def bytes(self) -> bytearray:
        """All of it."""
        data = bytearray(self.num_bytes)
        self.file.read_into(self.begin, memoryview(data))
        return data


def _is_size(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_SIZE


def _refuse(where: str, name: str, finding: str) -> NoReturn:
    raise CheckpointError(f"{where}: tensor {name}: {finding}")


def _check_entry(where: str, name: str, entry: Any, data_bytes: int) -> tuple[str, tuple[int, ...], int, int]:
    """(dtype, shape, begin, end) of one header entry whose product and span agree."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse(where, name, "expected an object with dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        _refuse(where, name, f"dtype {str(dtype)[:40]!r} is not known ({', '.join(BITS)} are)")
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(map(_is_size, shape)):
        expected = f"a list of at most {MAX_DIMS} integers in [0, 2^63)"
        _refuse(where, name, f"shape {str(shape)[:200]} must be {expected}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_size, offsets)):
        _refuse(where, name, f"data_offsets {str(offsets)[:200]} must be two integers in [0, 2^63)")
    begin, end = offsets
    bits = math.prod(shape) * BITS[dtype]  # Python integers do not overflow
    if begin > end or bits != 8 * (end - begin):
        span = f"data_offsets [{begin}, {end}) span {end - begin} bytes"
        _refuse(where, name, f"{span}, but {dtype} of shape {shape} has {bits / 8:.15g}")
    if end > data_bytes:
        finding = f"data_offsets [{begin}, {end}) end beyond the {data_bytes} bytes of data"
        _refuse(where, name, f"{finding}; is the file truncated?")
    return dtype, tuple(shape), begin, end


def _read_header(file: InputFile) -> tuple[dict[str, Any], int]:
    where, size = file.label, file.size
    if size < 8:
        raise CheckpointError(f"{where}: has {size} bytes, a safetensors file has at least 8; is it truncated?")
    header_bytes = int.from_bytes(file.read(0, 8), "little")
    if header_bytes > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{where}: header length {header_bytes} exceeds {MAX_HEADER_BYTES} bytes; not safetensors?"
        )
    if header_bytes > size - 8:
        raise CheckpointError(
            f"{where}: header length {header_bytes} exceeds the {size - 8} bytes that follow; is the file truncated?"
        )
    text = file.read(8, header_bytes)
    if not text.startswith(b"{"):
        raise CheckpointError(f"{where}: the header does not begin with '{{'; not a safetensors file?")
    if text.count(b'"data_offsets"') > MAX_TENSORS:
        raise CheckpointError(f"{where}: the header lists more than {MAX_TENSORS} tensors")
    header = parse_json_object(text, f"{where}: header")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{where}: __metadata__ must map strings to strings")
    return header, 8 + header_bytes


def read(path: Path, label: str | None = None) -> dict[str, Tensor]:
    """All tensors of a file by name. `label` is the file's name in messages (a hub cache's real path is a hash)."""
    where = label or str(path)
    file = InputFile(path, where)
    header, data_begin = _read_header(file)
    data_bytes = file.size - data_begin

    tensors: dict[str, Tensor] = {}
    spans: list[tuple[int, int, str]] = []
    for name, entry in header.items():
        if len(name.encode("utf-8", "surrogatepass")) > MAX_NAME_BYTES:
            raise CheckpointError(f"{where}: a tensor name has more than {MAX_NAME_BYTES} bytes: {name[:80]!r}...")
        dtype, shape, begin, end = _check_entry(where, name, entry, data_bytes)
        spans.append((begin, end, name))
        tensors[name] = Tensor(file, name, dtype, shape, data_begin + begin, end - begin)

    covered = 0
    for begin, end, name in sorted(spans):
        if begin != covered:
            kind = "overlaps the tensor before it" if begin < covered else "leaves a gap after the tensor before it"
            _refuse(where, name, f"begins at byte {begin} of the data, expected {covered}: {kind}")
        covered = end
    if covered != data_bytes:
        raise CheckpointError(
            f"{where}: tensors span {covered} bytes of data, the file has {data_bytes}; is it truncated?"
        )
    return tensors
