"""Rules that say where the bytes of a weight come from: a tensor of the checkpoint, and a strided window into it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MatrixFill:
    """Element (i, k) is element start + i * row_stride + k * col_stride of the source; it becomes row row_begin + i."""

    slot: str
    source: str
    shape: tuple[int, ...]  # that the source must have
    num_rows: int
    num_cols: int
    row_stride: int
    col_stride: int = 1
    start: int = 0
    row_begin: int = 0
    expert: int = 0

    @property
    def num_elements(self) -> int:
        return self.num_rows * self.num_cols


@dataclass(frozen=True, slots=True)
class VectorFill:
    """Element i is element start + i * stride of the source; it becomes element offset + i of the slot."""

    slot: str
    source: str
    shape: tuple[int, ...]
    count: int
    stride: int = 1
    start: int = 0
    offset: int = 0

    @property
    def num_elements(self) -> int:
        return self.count


Fill = MatrixFill | VectorFill


def matrix(slot: str, source: str, rows: int, cols: int, row_begin: int = 0, expert: int = 0) -> MatrixFill:
    """A whole [rows, cols] tensor."""
    return MatrixFill(slot, source, (rows, cols), rows, cols, cols, row_begin=row_begin, expert=expert)


def vector(slot: str, source: str, count: int, offset: int = 0) -> VectorFill:
    """A whole [count] tensor."""
    return VectorFill(slot, source, (count,), count, offset=offset)


def stacked(
    slot: str, source: str, experts: int, rows: int, cols: int, *, transposed: bool = False, interleaved: bool = False
) -> Iterator[MatrixFill]:
    """All experts in one tensor: [X, rows, cols], or [X, cols, rows] if transposed.

    Interleaved rows g0 u0 g1 u1 ... become g0 g1 ... u0 u1 ...
    """
    row_stride, col_stride = (1, rows) if transposed else (cols, 1)
    shape = (experts, cols, rows) if transposed else (experts, rows, cols)
    parts = 2 if interleaved else 1
    for expert in range(experts):
        for part in range(parts):
            yield MatrixFill(
                slot, source, shape, rows // parts, cols, parts * row_stride, col_stride,
                start=expert * rows * cols + part * row_stride, row_begin=part * (rows // parts), expert=expert,
            )  # fmt: skip


def stacked_vector(
    slot: str, source: str, experts: int, count: int, *, interleaved: bool = False
) -> Iterator[VectorFill]:
    """[X, count]; interleaved entries are taken apart as the rows in stacked()."""
    if not interleaved:
        yield VectorFill(slot, source, (experts, count), experts * count)
        return
    half = count // 2
    for expert in range(experts):
        for part in range(2):
            yield VectorFill(
                slot, source, (experts, count), half, 2, expert * count + part, offset=expert * count + part * half
            )
