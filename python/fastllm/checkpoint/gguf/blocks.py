"""The block formats of GGUF -> codes and scales. A row is a sequence of blocks of 32 or 256 elements.

d, m, dmin are float16. Q4_0, Q5_0, Q8_0: d * q. Q4_1, Q5_1: d * q + m. Q2_K, Q4_K, Q5_K: (d * sc) * q - (dmin * mn)
with a scale and a minimum per group of 16 or 32. Q3_K, Q6_K: (d * sc) * q. IQ4_NL: d * table[q]. MXFP4: 2^e * table[q].
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastllm.checkpoint.packed_format import F32, U8, Parameters
from fastllm.checkpoint.quantized.tensor import SIGNED, UNSIGNED, QuantizedRows
from fastllm.errors import CheckpointError

Array = np.ndarray[Any, Any]
_NIBBLES = np.array([0, 4], np.uint8).reshape(1, 2, 1)
_CRUMBS = np.array([0, 2, 4, 6], np.uint8).reshape(1, 4, 1)


def _table(values: list[float]) -> F32:
    table = np.zeros(256, np.float32)
    table[: len(values)] = values
    return table


_IQ4_NL = _table([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
_MXFP4 = _table([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12])  # doubled; the scale is halved


def _half(b: U8) -> F32:
    """Two bytes of each block as float32, [blocks, 1]."""
    return np.ascontiguousarray(b).view(np.float16).astype(np.float32)


def _nibbles(qs: Array, run: int) -> Array:
    """Each run of bytes holds first the low, then the high halves of 2 * run codes."""
    return (qs.reshape(-1, 1, run) >> _NIBBLES & 15).reshape(len(qs), -1)


def _fifth_bits(qh: Array) -> Array:
    return np.unpackbits(qh, axis=1, bitorder="little") << 4


Parts = tuple[
    Array, Array, Array, "Array | None"
]  # codes [blocks, elements], table, scales and offsets [blocks, groups]


def _q4_0(b: U8) -> Parts:
    return _nibbles(b[:, 2:], 16), UNSIGNED - 8, _half(b[:, :2]), None


def _q4_1(b: U8) -> Parts:
    return _nibbles(b[:, 4:], 16), UNSIGNED, _half(b[:, :2]), -_half(b[:, 2:4])


def _q5_0(b: U8) -> Parts:
    return _nibbles(b[:, 6:], 16) | _fifth_bits(b[:, 2:6]), UNSIGNED - 16, _half(b[:, :2]), None


def _q5_1(b: U8) -> Parts:
    return _nibbles(b[:, 8:], 16) | _fifth_bits(b[:, 4:8]), UNSIGNED, _half(b[:, :2]), -_half(b[:, 2:4])


def _q8_0(b: U8) -> Parts:
    return b[:, 2:], SIGNED, _half(b[:, :2]), None


def _iq4_nl(b: U8) -> Parts:
    return _nibbles(b[:, 2:], 16), _IQ4_NL, _half(b[:, :2]), None


def _mxfp4(b: U8) -> Parts:
    exponent = b[:, :1].astype(np.uint32)
    bits = np.where(exponent < 2, np.uint32(0x00200000) << exponent, (exponent - 1) << 23)  # 2^(e - 128)
    return _nibbles(b[:, 1:], 16), _MXFP4, bits.astype(np.uint32).view(np.float32), None


def _q2_k(b: U8) -> Parts:
    scales, qs, d, dmin = b[:, :16], b[:, 16:80], _half(b[:, 80:82]), _half(b[:, 82:84])
    codes = (qs.reshape(-1, 1, 32) >> _CRUMBS & 3).reshape(len(b), -1)
    return codes, UNSIGNED, d * (scales & 15).astype(np.float32), dmin * (scales >> 4).astype(np.float32)


def _q3_k(b: U8) -> Parts:
    hmask, qs, packed, d = b[:, :32], b[:, 32:96], b[:, 96:108], _half(b[:, 108:110])
    low = (packed[:, :8].reshape(-1, 1, 8) >> _NIBBLES & 15).reshape(-1, 16)
    high = (packed[:, 8:].reshape(-1, 1, 4) >> _CRUMBS & 3).reshape(-1, 16)
    scales = (low | high << 4).astype(np.float32) - 32
    codes = (qs.reshape(-1, 1, 32) >> _CRUMBS & 3).reshape(len(b), -1)
    bits = (hmask.reshape(-1, 1, 32) >> np.arange(8, dtype=np.uint8).reshape(1, 8, 1) & 1).reshape(len(b), -1)
    return codes | bits << 2, UNSIGNED - 4, d * scales, None  # the third bit says: do not subtract 4


def _six_bit_scales(packed: U8) -> tuple[F32, F32]:
    """Twelve bytes hold eight 6-bit scales and eight 6-bit minima."""
    d, m, md = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([d & 63, (md & 15) | (d >> 2 & 48)], axis=1)
    minima = np.concatenate([m & 63, (md >> 4) | (m >> 2 & 48)], axis=1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _q4_k(b: U8) -> Parts:
    scales, minima = _six_bit_scales(b[:, 4:16])
    return _nibbles(b[:, 16:], 32), UNSIGNED, _half(b[:, :2]) * scales, _half(b[:, 2:4]) * minima


def _q5_k(b: U8) -> Parts:
    scales, minima = _six_bit_scales(b[:, 4:16])
    shifts = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    fifth = (b[:, 16:48].reshape(-1, 1, 32) >> shifts & 1).reshape(len(b), -1)
    return _nibbles(b[:, 48:], 32) | fifth << 4, UNSIGNED, _half(b[:, :2]) * scales, _half(b[:, 2:4]) * minima


def _q6_k(b: U8) -> Parts:
    low = _nibbles(b[:, :128], 64)
    high = (b[:, 128:192].reshape(-1, 1, 32) >> _CRUMBS & 3).reshape(len(b), -1)
    scales = np.ascontiguousarray(b[:, 192:208]).view(np.int8).astype(np.float32)
    return low | high << 4, UNSIGNED - 32, _half(b[:, 208:210]) * scales, None


FORMATS: dict[str, Callable[[U8], Parts]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "IQ4_NL": _iq4_nl, "MXFP4": _mxfp4,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k,
}  # fmt: skip


# What the codes of a format mean, where they are integers with one float16 scale (MXFP4: a power of two) in 32 columns.
_LEVELS: dict[str, F32] = {
    "Q4_0": UNSIGNED[:16] - 8, "Q5_0": UNSIGNED[:32] - 16, "Q8_0": SIGNED, "IQ4_NL": _IQ4_NL[:16],
    "MXFP4": _MXFP4[:16],
}  # fmt: skip


def parameters_of(name: str, num_cols: int) -> Parameters | str:
    if name in _LEVELS:
        return Parameters(_LEVELS[name], 32, num_cols, "bfloat16" if name == "MXFP4" else "float16")
    return f"{name} has no such form" if name in FORMATS else f"it is {name}"


def rows_of(name: str, data: U8, num_rows: int, block_bytes: int) -> QuantizedRows:
    """Bytes of whole rows. Raises CheckpointError for scales that are not finite."""
    with np.errstate(invalid="ignore"):  # infinite times 0: refused below
        codes, table, scales, offsets = FORMATS[name](data.reshape(-1, block_bytes))
    if not np.isfinite(scales).all() or (offsets is not None and not np.isfinite(offsets).all()):
        raise CheckpointError("a scale is not a finite number")
    return QuantizedRows(
        np.ascontiguousarray(codes).reshape(num_rows, -1), np.ascontiguousarray(table, np.float32),
        np.ascontiguousarray(scales).reshape(num_rows, -1), codes.shape[1] // scales.shape[1],
        offsets=None if offsets is None else np.ascontiguousarray(offsets).reshape(num_rows, -1),
    )  # fmt: skip
