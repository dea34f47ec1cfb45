"""The packed weights of a model in one file, so that the next start reads them instead of packing them again.

8 bytes of magic, 8 bytes of length N, N bytes of JSON, zeros up to a page, then the weights as they lie in memory. The
JSON holds the key, which says what the weights were made of and by what, and a checksum for each chunk. A file
with another key is stale, one with a wrong checksum is damaged: both are packed anew and replaced. A file is written
under a temporary name and renamed, so that another process sees all of it or nothing.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from fastllm import _core
from fastllm.checkpoint.files import InputFile
from fastllm.checkpoint.threads import for_each
from fastllm.errors import CheckpointError

_log = logging.getLogger("fastllm")
MAGIC = b"FLLMPACK"
VERSION = 2
PAGE = 4096
CHUNK_BYTES = 1 << 20
MAX_HEADER_BYTES = 64 << 20
# What is hashed of a source file: its header, and pieces from its beginning to its end. Files up to 4 MiB whole.
HEAD_BYTES = 1 << 20
PIECES, PIECE_BYTES = 64, 64 << 10


def key_of(files: Iterable[InputFile], settings: dict[str, Any]) -> dict[str, Any]:
    """What packed weights depend on. `settings` are those of the load, the core's layout fingerprint among them."""
    ordered = sorted(files, key=lambda file: file.label)
    sources = [[Path(file.label).name, file.size, *file.identity, digest(file)] for file in ordered]
    return {"version": VERSION, "sources": sources, "settings": settings}


def digest(file: InputFile) -> str:
    """Reading all of a file would take as long as packing it: other weights differ in more than one place."""
    head = 8 + int.from_bytes(file.read(0, 8), "little") if file.label.endswith(".safetensors") else HEAD_BYTES
    state = hashlib.sha256(file.read(0, min(file.size, head)))
    size = min(file.size, PIECE_BYTES)
    for i in range(PIECES):
        state.update(file.read((file.size - size) * i // (PIECES - 1), size))
    return state.hexdigest()


def path_of(directory: Path, model: Path, settings: dict[str, Any]) -> Path:
    """One file per model folder and way of loading it; a newer one takes the place of a stale one."""
    ways = {name: value for name, value in settings.items() if name not in ("layout", "fastllm")}
    text = json.dumps([str(model.resolve()), ways], sort_keys=True)
    return directory / f"{model.resolve().name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.fastllm"


class _Unusable(Exception):
    """Why a file is not used: it is packed anew."""


def read(path: Path, key: dict[str, Any], memory: np.ndarray[Any, np.dtype[np.uint8]], num_threads: int) -> bool:
    """Fills `memory` from the file, if there is one with this key and it is whole; else `memory` stays zeros."""
    if not path.exists():
        return False
    try:
        file = InputFile(path, str(path))
        begin, checksums = _read_header(file, key, len(memory))
        _read_chunks(file, begin, checksums, memory, num_threads)
    except (_Unusable, CheckpointError) as e:
        _log.warning("%s: %s; the weights are packed anew", path, e)
        return False
    return True


def _read_header(file: InputFile, key: dict[str, Any], num_bytes: int) -> tuple[int, list[int]]:
    if file.size < 16 or file.read(0, 8) != MAGIC:
        raise _Unusable("is no file of packed weights")
    length = int.from_bytes(file.read(8, 8), "little")
    begin = -(-(16 + length) // PAGE) * PAGE
    if length > MAX_HEADER_BYTES or file.size != begin + num_bytes:
        raise _Unusable(f"has {file.size} bytes, which is not what its header and the model need")
    try:
        header = json.loads(file.read(16, length))
        found, checksums = header["key"], header["checksums"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _Unusable("its header is damaged") from None
    if found != key:
        raise _Unusable("is stale: it was made of other files, or by another version")
    if not isinstance(checksums, list) or len(checksums) != -(-num_bytes // CHUNK_BYTES):
        raise _Unusable("its header is damaged")
    return begin, checksums


def _read_chunks(
    file: InputFile, begin: int, checksums: list[int], memory: np.ndarray[Any, np.dtype[np.uint8]], num_threads: int
) -> None:
    def read_chunk(chunk: int) -> None:
        part = memory[chunk * CHUNK_BYTES : (chunk + 1) * CHUNK_BYTES]
        file.read_into(begin + chunk * CHUNK_BYTES, part.data)
        if _core.checksum(part) != checksums[chunk]:
            raise _Unusable(f"is damaged at byte {begin + chunk * CHUNK_BYTES}")

    try:
        for_each(range(len(checksums)), lambda: read_chunk, num_threads)
    except BaseException:
        memory[:] = 0  # what packing expects
        raise


def write(path: Path, key: dict[str, Any], memory: np.ndarray[Any, np.dtype[np.uint8]]) -> None:
    """Writes the file; a disk that refuses is a line in the log, not an error: the model is loaded."""
    checksums = [_core.checksum(memory[at : at + CHUNK_BYTES]) for at in range(0, len(memory), CHUNK_BYTES)]
    header = json.dumps({"key": key, "checksums": checksums}).encode()
    start = MAGIC + len(header).to_bytes(8, "little") + header
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(prefix=f"{path.name}.", dir=path.parent)
        with os.fdopen(handle, "wb") as file:
            file.write(start + bytes(-len(start) % PAGE))
            file.write(memory.data)
        os.replace(temporary, path)
        _log.info("%s: written, %d bytes", path, len(memory))
    except OSError as e:
        _log.warning("%s: the packed weights cannot be kept: %s", path, e)
    finally:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
