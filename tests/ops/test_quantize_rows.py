"""Rounding to nearest: against numpy written out, and against every other scale that could have been taken."""

from __future__ import annotations

import numpy as np
import pytest

from fastllm import CheckpointError, InvalidRequestError, _core

RATIOS = [1.0, 0.9375, 0.875, 0.8125, 0.75, 0.6875, 0.625, 0.5625, 0.5]


def _rounded(scale: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        bits = scale.view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    return scale.astype(dtype).astype(np.float32)


def _reference(w: np.ndarray, bits: int, symmetric: bool, ratio: float, dtype: str) -> tuple[np.ndarray, ...]:
    """Codes, scale, zero of groups [.., G] for one share of the range."""
    top, middle = np.float32(2**bits - 1), np.float32(2 ** (bits - 1))
    low, high = np.minimum(w.min(-1, keepdims=True), 0), np.maximum(w.max(-1, keepdims=True), 0)
    reach = np.maximum(-low, high) / (middle - 1) if symmetric else (high - low) / top
    scale = _rounded((reach * np.float32(ratio)).astype(np.float32), dtype)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale > 0)
    zero = np.full_like(scale, middle)
    if not symmetric:
        zero = np.where(scale > 0, np.clip(np.rint(-low * np.float32(ratio) * inverse), 0, top), middle)
    codes = np.clip(np.rint(w * inverse) + zero, 0, top)
    return codes, scale, zero


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("group", "dtype"), [(32, "float16"), (64, "bfloat16"), (128, "float16"), (0, "float32")])
@pytest.mark.parametrize("symmetric", [True, False])
def test_codes_are_the_nearest_and_the_scale_the_best_of_nine(bits, group, dtype, symmetric):
    rng = np.random.default_rng(bits * 1000 + group)
    rows, cols = 7, 384 if group else 209  # a whole row may have any length
    w = (rng.standard_normal((rows, cols)) * rng.lognormal(-3, 1, (rows, 1))).astype(np.float32)
    w[0, ::97] *= 20  # outliers
    w[1] = 0
    w[2] = abs(w[2])
    groups = w.reshape(rows, -1, group or cols)
    for clip_search in (False, True):
        codes, scales, zeros = _core.quantize_rows(
            w, bits, group, symmetric=symmetric, clip_search=clip_search, scale_dtype=dtype
        )
        assert codes.dtype == np.uint8 and codes.shape == w.shape and scales.shape == groups.shape[:2]
        assert (zeros is None) == symmetric and np.array_equal(_rounded(scales.copy(), dtype), scales)
        zero = np.full_like(scales, 2 ** (bits - 1)) if zeros is None else zeros.astype(np.float32)

        def error(codes, scale, zero):
            return ((groups.astype(np.float64) - (codes - zero) * scale.astype(np.float64)) ** 2).sum(-1)

        tried = [_reference(groups, bits, symmetric, r, dtype) for r in (RATIOS if clip_search else RATIOS[:1])]
        errors = np.stack([error(*one) for one in tried])
        got = error(codes.reshape(groups.shape), scales[..., None], zero[..., None])
        assert (got <= errors.min(0) * (1 + 1e-5) + 1e-12).all()  # the search sums in float32
        if not clip_search:
            for found, expected in ((codes.reshape(groups.shape), tried[0][0]), (scales[..., None], tried[0][1])):
                assert np.array_equal(found, expected)
    assert (w[1] == 0).all() and (codes[1] == zero[1].repeat(groups.shape[2])).all()


def test_a_row_does_not_depend_on_the_others():
    w = np.random.default_rng(3).standard_normal((9, 256)).astype(np.float32)
    whole = _core.quantize_rows(w, 4, 64, symmetric=False)
    for i in range(len(w)):
        for found, expected in zip(_core.quantize_rows(w[i : i + 1], 4, 64, symmetric=False), whole, strict=True):
            assert np.array_equal(found[0], expected[i])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 3e38])
def test_what_no_scale_can_hold_is_refused(bad):
    w = np.zeros((2, 64), np.float32)
    w[1, 40] = bad
    with pytest.raises(CheckpointError, match="cannot be quantized"):
        _core.quantize_rows(w, 4, 32)


def test_the_smallest_numbers_become_zero_or_stay_finite():
    for size in (1e-45, 1e-38, 1e-30, 1e-9, 6e-8):
        w = np.linspace(-size, size, 64, dtype=np.float32).reshape(1, 64)
        for dtype in ("float16", "bfloat16", "float32"):
            codes, scales, _ = _core.quantize_rows(w, 8, 64, scale_dtype=dtype)
            error = abs((codes - 128.0) * scales[0, 0] - w).max()
            assert np.isfinite(scales).all() and error <= np.float32(size)


def test_wrong_arguments():
    w = np.zeros((2, 48), np.float32)
    for bits, group, match in ((3, 16, "bits = 3"), (4, 32, "must divide the 48 columns"), (4, -1, "group = -1")):
        with pytest.raises(InvalidRequestError, match=match):
            _core.quantize_rows(w, bits, group)
