"""The formats of codes with scales that kernels read, and whether one of them holds a quantized tensor exactly.

W[n, k] = (code[n, k] - zero[n, k // group]) * scale[n, k // group], codes of 4 or 8 bits without sign, groups of 32, 64
or 128 columns with float16 or bfloat16 scales, or whole rows with float32 scales. Without zeros the zero is 8 or 128.
On CUDA also fp8: W[n, k] = code[n, k] * scale[n, k // group], codes e4m3, scales float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
GROUPS = (128, 64, 32)


def _e4m3() -> F32:
    """FP8 E4M3 (fn): sign, 4 bits of exponent with bias 7, 3 of mantissa; no infinity, S.1111.111 is NaN."""
    bits = np.arange(256)
    exponent, mantissa = bits >> 3 & 15, bits & 7
    value = np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * 2.0 ** (exponent - 10.0))
    value = np.where((bits & 0x7F) == 0x7F, np.nan, value)
    return np.where(bits & 0x80, -value, value).astype(np.float32)


E4M3: F32 = _e4m3()  # what its codes mean


@dataclass(frozen=True, slots=True)
class PackedFormat:
    bits: int  # 4 or 8
    group: int  # columns that share a scale; 0: the whole row
    scale_dtype: str  # "float16" or "bfloat16", "float32" for whole rows
    has_zeros: bool
    is_fp8: bool = False

    @property
    def kind(self) -> str:
        """As the core names it."""
        return "fp8" if self.is_fp8 else f"int{self.bits}"

    @property
    def name(self) -> str:
        """For people: ``"int4 g128"``, ``"int8 row, zeros"``, ``"fp8 row"``."""
        return f"{self.kind} {f'g{self.group}' if self.group else 'row'}{', zeros' if self.has_zeros else ''}"

    @property
    def middle(self) -> int:
        """The zero where there are none."""
        return 1 << (self.bits - 1)

    @property
    def largest_zero(self) -> int:
        return 16 if self.bits == 4 else 255


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a quantized tensor asks of a packed format."""

    levels: F32  # what its codes mean, without zero and scale
    group_size: int
    num_cols: int
    scale_dtype: str | None  # None: by the values in `scales`
    scales: F32 | None = None
    zeros: F32 | None = None


def exact_format(p: Parameters, *, fp8: bool = False) -> PackedFormat | str:
    """The smallest format that holds such a tensor exactly, or why there is none. fp8: whether that is one."""
    is_fp8 = fp8 and p.levels is E4M3
    if not is_fp8 and not np.array_equal(p.levels, np.rint(p.levels)):
        return "its codes are no integers"
    if p.group_size >= p.num_cols:
        group, scale_dtype = 0, "float32"
    else:
        # The scale of a larger group is repeated for each of the groups that it is made of.
        group = next((g for g in GROUPS if p.group_size % g == 0), 0)
        if group == 0 or p.num_cols % group != 0:
            return f"groups of {p.group_size} columns"
        found = "float32" if is_fp8 else p.scale_dtype or _type_that_holds(p.scales)
        if found is None:
            return "its scales need float32"
        scale_dtype = found
    if is_fp8:
        return PackedFormat(8, group, scale_dtype, False, True) if p.zeros is None else "fp8 with zero points"
    low, high = int(p.levels.min()), int(p.levels.max())
    first = 0.0 if p.zeros is None else float(p.zeros.flat[0])
    is_constant = p.zeros is None or bool((p.zeros == first).all())
    for bits in (4, 8):
        plain = PackedFormat(bits, group, scale_dtype, False)
        if is_constant and low - first >= -plain.middle and high - first < plain.middle:
            return plain
        packed = replace(plain, has_zeros=True)
        if p.zeros is not None and high - low < 1 << bits and _holds_zeros(packed, p.zeros + _shift(packed, low)):
            return packed
    return "its codes or zero points have more than 8 bits"


def _holds_zeros(packed: PackedFormat, zeros: F32) -> bool:
    in_range = zeros.min() >= 0 and zeros.max() <= packed.largest_zero
    return bool(in_range and np.array_equal(zeros, np.rint(zeros)))


def _type_that_holds(scales: F32 | None) -> str | None:
    if scales is None:
        return None
    with np.errstate(over="ignore"):
        if np.array_equal(scales.astype(np.float16).astype(np.float32), scales):
            return "float16"
    return "bfloat16" if not (np.ascontiguousarray(scales).view(np.uint32) & 0xFFFF).any() else None


def _shift(target: PackedFormat, low: int) -> int:
    """What is added to levels and zeros so that neither is negative."""
    return target.middle if low < 0 else 0


def common_format(formats: Sequence[PackedFormat | str]) -> PackedFormat | str:
    """The smallest format that holds all parts of one matrix exactly, or why there is none."""
    reasons = [f for f in formats if isinstance(f, str)]
    if reasons:
        return reasons[0]
    parts = [f for f in formats if isinstance(f, PackedFormat)]
    if len({f.is_fp8 for f in parts}) > 1:
        return "parts of a fused matrix are integers and fp8"
    if len({(f.group == 0, f.scale_dtype) for f in parts}) > 1:
        return "parts of a fused matrix have scales of different types"
    widest = max(parts, key=lambda f: f.bits)
    return replace(widest, group=min(f.group for f in parts), has_zeros=any(f.has_zeros for f in parts))


def repack(
    target: PackedFormat, codes: U8, table: F32, scales: F32, zeros: F32 | None, group_size: int
) -> tuple[U8, F32, U8 | None]:
    """Codes, scales and zeros of some rows as `target` has them; exact_format() has said that it can."""
    zero = np.zeros_like(scales) if zeros is None else zeros
    shift = (
        0
        if target.is_fp8
        else _shift(target, int(table.min()))
        if target.has_zeros
        else target.middle - int(zero.flat[0])
    )
    num_cols = codes.shape[1]
    if target.group and group_size != target.group:
        columns = np.arange(num_cols // target.group) * target.group // group_size
        scales, zero = scales[:, columns], zero[:, columns]
    return (
        codes if target.is_fp8 else _moved(codes, table, shift),
        np.ascontiguousarray(scales),
        (zero + np.float32(shift)).astype(np.uint8) if target.has_zeros else None,
    )


def _moved(codes: U8, table: F32, shift: int) -> U8:
    """table[codes] + shift as bytes. Tables that count up from their first level are an addition."""
    moved = (table.astype(np.int32) + shift).astype(np.uint8)
    if np.array_equal(moved, np.arange(256, dtype=np.uint8) + moved[0]):
        return codes if moved[0] == 0 else codes + moved[0]
    return moved[codes]
