"""The bytes of a checkpoint -> the packed weights of a model, in blocks of rows, on several threads.

Floats go to the core as they are (it rounds them where the matrix is one of integers); what stays packed goes as codes,
scales and zeros. A block is small enough to be packed while it is in the cache, and large enough that the Python around
it does not count (reading and packing release the GIL). So loading takes the memory of the weights and a few blocks. A
transposed source is one block, because each of its rows holds a part of every row of the weight.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fastllm.checkpoint.packed_format import PackedFormat
from fastllm.checkpoint.quantized import Source
from fastllm.checkpoint.quantized.tensor import QuantizedTensor
from fastllm.checkpoint.threads import for_each
from fastllm.errors import CheckpointError
from fastllm.models.fills import Fill, MatrixFill

# Type in the file -> (name in the core, bytes).
FLOATS = {"F32": ("float32", 4), "BF16": ("bfloat16", 2), "F16": ("float16", 2)}
BLOCK_BYTES = 1 << 20  # half of a second-level cache
# Blocks end at multiples of this many rows of the weight, which backends pack together.
ROW_ALIGNMENT = 64


class Weights(Protocol):
    """What the native ModelWeights offers. Calls for disjoint rows may run at the same time."""

    def fill_matrix(
        self, name: str, address: int, dtype: str, num_rows: int, num_cols: int, row_stride: int, col_stride: int,
        row_begin: int, expert: int,
    ) -> None: ...  # fmt: skip
    def fill_codes(self, name: str, codes: Any, scales: Any, zeros: Any, row_begin: int, expert: int) -> None: ...
    def fill_vector(self, name: str, address: int, dtype: str, count: int, stride: int, offset: int) -> None: ...
    def unfilled(self) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class _Block:
    """Rows [row, row + num_rows) of a matrix fill, or a whole vector fill; elements [begin, end) of the source."""

    fill: Fill
    tensor: Source
    begin: int
    end: int
    row: int = 0
    num_rows: int = 0
    packed: PackedFormat | None = None  # of a matrix that stays packed

    @property
    def num_bytes(self) -> int:
        """As they are handed to the core: floats, or one byte a code."""
        return (self.end - self.begin) * (1 if self.packed is not None else FLOATS[self.tensor.dtype][1])

    def codes(self) -> tuple[Any, Any, Any]:
        assert (
            isinstance(self.fill, MatrixFill) and isinstance(self.tensor, QuantizedTensor) and self.packed is not None
        )
        num_cols, step = self.fill.num_cols, self.fill.row_stride // self.fill.num_cols
        first = self.begin // num_cols
        return self.tensor.codes(range(first, first + (self.num_rows - 1) * step + 1, step), self.packed)


def _blocks(fill: Fill, tensor: Source, packed: PackedFormat | None) -> Iterator[_Block]:
    if not isinstance(fill, MatrixFill):
        yield _Block(fill, tensor, fill.start, fill.start + (fill.count - 1) * fill.stride + 1)
        return
    if fill.col_stride != 1:
        extent = (fill.num_rows - 1) * fill.row_stride + (fill.num_cols - 1) * fill.col_stride + 1
        yield _Block(fill, tensor, fill.start, fill.start + extent, 0, fill.num_rows)
        return
    row_bytes = fill.row_stride * (1 if packed is not None else FLOATS[tensor.dtype][1])
    step = max(ROW_ALIGNMENT, BLOCK_BYTES // row_bytes // ROW_ALIGNMENT * ROW_ALIGNMENT)
    row = 0
    while row < fill.num_rows:
        next_row = min(fill.num_rows, (fill.row_begin + row + step) // ROW_ALIGNMENT * ROW_ALIGNMENT - fill.row_begin)
        begin = fill.start + row * fill.row_stride
        end = begin + (next_row - row - 1) * fill.row_stride + fill.num_cols
        yield _Block(fill, tensor, begin, end, row, next_row - row, packed)
        row = next_row


class _Worker:
    """One thread's hand: reads a block into its buffer and gives it to the core."""

    def __init__(self, weights: Weights, on_done: Callable[[_Block], None]) -> None:
        self._weights = weights
        self._on_done = on_done
        self._buffer = np.empty(0, np.uint8)

    def __call__(self, block: _Block) -> None:
        if block.packed is not None:
            self._fill_codes(block)
        else:
            if len(self._buffer) < block.num_bytes:
                self._buffer = np.empty(block.num_bytes, np.uint8)
            block.tensor.read(block.begin, self._buffer[: block.num_bytes].data)
            self._fill_floats(block)
        self._on_done(block)

    def _fill_codes(self, block: _Block) -> None:
        fill = block.fill
        assert isinstance(fill, MatrixFill)
        codes, scales, zeros = block.codes()
        with _named(block):
            self._weights.fill_codes(
                name=fill.slot, codes=codes, scales=scales, zeros=zeros, row_begin=fill.row_begin + block.row,
                expert=fill.expert,
            )  # fmt: skip

    def _fill_floats(self, block: _Block) -> None:
        fill, dtype = block.fill, FLOATS[block.tensor.dtype][0]
        address = int(self._buffer.ctypes.data)
        with _named(block):
            if isinstance(fill, MatrixFill):
                self._weights.fill_matrix(
                    name=fill.slot, address=address, dtype=dtype, num_rows=block.num_rows, num_cols=fill.num_cols,
                    row_stride=fill.row_stride, col_stride=fill.col_stride, row_begin=fill.row_begin + block.row,
                    expert=fill.expert,
                )  # fmt: skip
            else:
                self._weights.fill_vector(
                    name=fill.slot, address=address, dtype=dtype, count=fill.count, stride=fill.stride,
                    offset=fill.offset,
                )  # fmt: skip


@contextmanager
def _named(block: _Block) -> Iterator[None]:
    """Errors of the core name the slot; here they get the tensor and its file."""
    try:
        yield
    except CheckpointError as e:
        raise CheckpointError(f"{block.tensor.where}: {e}") from e


def pack(
    fills: Sequence[tuple[Fill, Source]],
    weights: Weights,
    kept: Mapping[str, PackedFormat],
    progress: Callable[[int, int], None] | None = None,
    num_threads: int = 1,
) -> None:
    """Reads and packs every fill; the slots in `kept` hold the codes of their tensors in that format.

    `progress(done, total)` is told bytes as they reach the core, on the calling thread.
    """
    blocks = [block for fill, tensor in fills for block in _blocks(fill, tensor, kept.get(fill.slot))]
    # In the order of the files, so that a cold disk reads ahead.
    blocks.sort(key=lambda block: (block.tensor.file.label, block.tensor.begin + block.begin))
    total, done, lock = sum(block.num_bytes for block in blocks), 0, threading.Lock()
    caller = threading.current_thread()

    def on_done(block: _Block) -> None:
        nonlocal done
        with lock:
            done += block.num_bytes
        if progress is not None and threading.current_thread() is caller:
            progress(done, total)

    for_each(blocks, lambda: _Worker(weights, on_done), num_threads)
    if progress is not None:
        progress(total, total)
