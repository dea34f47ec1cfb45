"""The bytes of a checkpoint -> the packed weights of a model, in blocks of rows, on several threads.

A block is read into a buffer of its thread, small enough to be packed while it is in the cache, and large enough that
the Python around it does not count (reading and packing release the GIL). So loading takes the memory of the weights
and a few blocks. A transposed source is one block, because each of its rows holds a part of every row of the weight.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from fastllm.checkpoint.quantized import Source
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

    @property
    def num_bytes(self) -> int:
        return (self.end - self.begin) * FLOATS[self.tensor.dtype][1]


def _blocks(fill: Fill, tensor: Source) -> Iterator[_Block]:
    if not isinstance(fill, MatrixFill):
        yield _Block(fill, tensor, fill.start, fill.start + (fill.count - 1) * fill.stride + 1)
        return
    if fill.col_stride != 1:
        extent = (fill.num_rows - 1) * fill.row_stride + (fill.num_cols - 1) * fill.col_stride + 1
        yield _Block(fill, tensor, fill.start, fill.start + extent, 0, fill.num_rows)
        return
    row_bytes = fill.row_stride * FLOATS[tensor.dtype][1]
    step = max(ROW_ALIGNMENT, BLOCK_BYTES // row_bytes // ROW_ALIGNMENT * ROW_ALIGNMENT)
    row = 0
    while row < fill.num_rows:
        next_row = min(fill.num_rows, (fill.row_begin + row + step) // ROW_ALIGNMENT * ROW_ALIGNMENT - fill.row_begin)
        begin = fill.start + row * fill.row_stride
        end = begin + (next_row - row - 1) * fill.row_stride + fill.num_cols
        yield _Block(fill, tensor, begin, end, row, next_row - row)
        row = next_row


class _Packer:
    """The shared state of the threads of one load."""

    def __init__(self, blocks: Sequence[_Block], weights: Weights, progress: Callable[[int, int], None] | None) -> None:
        self._blocks = iter(blocks)
        self._total = sum(block.num_bytes for block in blocks)
        self._weights = weights
        self._progress = progress
        self._lock = threading.Lock()
        self._done = 0
        self._error: BaseException | None = None

    def run(self, num_threads: int) -> None:
        helpers: list[threading.Thread] = []
        for _ in range(num_threads - 1):
            helper = threading.Thread(target=self._work, name="fastllm-load")
            try:
                helper.start()
            except RuntimeError:  # no memory or no more threads allowed: those that run do the work
                break
            helpers.append(helper)
        self._work(self._progress)
        for helper in helpers:
            helper.join()
        if self._error is not None:
            raise self._error
        if self._progress is not None:
            self._progress(self._total, self._total)

    def _work(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Takes blocks until there are none, or until one of the threads has failed."""
        buffer = np.empty(0, np.uint8)
        try:
            while (block := self._next()) is not None:
                if len(buffer) < block.num_bytes:
                    buffer = np.empty(block.num_bytes, np.uint8)
                block.tensor.read(block.begin, buffer[: block.num_bytes].data)
                self._pack(block, int(buffer.ctypes.data))
                with self._lock:
                    self._done += block.num_bytes
                if progress is not None:
                    progress(self._done, self._total)
        except BaseException as error:  # KeyboardInterrupt included: the helpers must end before it goes on
            with self._lock:
                self._error = self._error or error

    def _next(self) -> _Block | None:
        with self._lock:
            return None if self._error is not None else next(self._blocks, None)

    def _pack(self, block: _Block, address: int) -> None:
        fill = block.fill
        dtype = FLOATS[block.tensor.dtype][0]
        try:
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
        except CheckpointError as e:
            raise CheckpointError(f"{block.tensor.where}: {e}") from e


def pack(
    fills: Sequence[tuple[Fill, Source]],
    weights: Weights,
    progress: Callable[[int, int], None] | None = None,
    num_threads: int = 1,
) -> None:
    """Reads and packs every fill. `progress(done, total)` is told bytes of the source, on the calling thread."""
    blocks = [block for fill, tensor in fills for block in _blocks(fill, tensor)]
    # In the order of the files, so that a cold disk reads ahead.
    blocks.sort(key=lambda block: (block.tensor.file.label, block.tensor.begin + block.begin))
    _Packer(blocks, weights, progress).run(num_threads)
