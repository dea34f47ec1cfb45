"""Safetensors files written one after the other, so that a layer can leave memory when it is done."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fastllm.checkpoint.index import INDEX
from fastllm.checkpoint.safetensors import Tensor as StoredTensor
from fastllm.errors import CheckpointError
from fastllm.quantize.source import chunks

_NAMES = {
    torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.int32: "I32", torch.int64: "I64",
    torch.int8: "I8", torch.uint8: "U8",
}  # fmt: skip

Content = Tensor | StoredTensor


def _entry(content: Content) -> tuple[str, list[int], int]:
    if isinstance(content, StoredTensor):
        return content.dtype, list(content.shape), content.num_bytes
    return _NAMES[content.dtype], list(content.shape), content.numel() * content.element_size()


def _data(content: Content) -> Iterable[bytes | memoryview]:
    if isinstance(content, StoredTensor):
        return chunks(content)
    return [content.contiguous().reshape(-1).view(torch.uint8).numpy().data]


@contextmanager
def published(path: Path) -> Iterator[BinaryIO]:
    """A file that gets its name when all of it is on the disk. Raises CheckpointError if the disk takes no more."""
    partial = path.with_suffix(".writing")
    try:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
        folder = os.open(path.parent, os.O_RDONLY)  # the name, too
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be written: {error.strerror}") from error


def write_safetensors(path: Path, tensors: Mapping[str, Content]) -> None:
    """Tensors of this process, or of another file, whose bytes are copied."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, content in tensors.items():
        dtype, shape, size = _entry(content)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with published(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for content in tensors.values():
            file.writelines(_data(content))


def write_json(path: Path, value: Any) -> None:
    with published(path) as file:
        file.write(json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n")


def write_index(folder: Path, names_of: Mapping[str, Iterable[str]], total_bytes: int) -> None:
    """model.safetensors.index.json for files with these tensors."""
    weight_map = {name: file for file, names in names_of.items() for name in names}
    write_json(folder / INDEX, {"metadata": {"total_size": total_bytes}, "weight_map": weight_map})
