"""Integer weights: linear, embed and moe_ffn on codes, in every activation mode, format, group and level."""

import numpy as np
import oracle
import pytest
from tolerances import assert_close, assert_same_bits

from fastllm import ops

INTEGER_MODES = ["a8", "a8r", "a15"]
MODES = [*INTEGER_MODES, "bf16", "f32"]
FORMATS = ["int4", "int8"]
GROUPS = [32, 64, 128, 0]
# (M, K, N): tails of groups, panels and tiles; more than one group of rows.
SHAPES = [(1, 1, 1), (2, 31, 5), (3, 33, 32), (7, 100, 33), (13, 257, 70), (5, 128, 64), (0, 64, 8), (100, 192, 40)]


class Weight:
    """Random codes with scales, and what they mean in float64."""

    def __init__(self, rng, shape, *, format="int4", group=64, has_zeros=False, scale_dtype=None, codes=None):
        self.group, self.format = group, format
        top = 15 if format == "int4" else 255
        k = shape[-1]
        self.groups = -(-k // group) if group else 1
        self.codes = rng.integers(0, top + 1, shape, dtype=np.uint8) if codes is None else codes
        scales = (0.5 + rng.random((*shape[:-1], self.groups))) / (8 if format == "int4" else 128)
        self.scale_dtype = scale_dtype or ("float16" if group else "float32")
        self.scales = oracle.rounded(scales, self.scale_dtype).astype(np.float32)
        top_zero = 16 if format == "int4" else 255
        self.zeros = rng.integers(0, top_zero + 1, self.scales.shape, dtype=np.uint8) if has_zeros else None

    def packed(self, device, act="a8r"):
        return ops.PackedWeight.from_codes(
            self.codes,
            self.scales,
            self.zeros,
            format=self.format,
            group=self.group,
            act=act,
            scale_dtype=self.scale_dtype,
            device=device,
        )

    def columns(self, values):
        """[..., groups] spread over the columns."""
        return np.repeat(values, self.group or self.codes.shape[-1], axis=-1)[..., : self.codes.shape[-1]]

    @property
    def exact(self):
        zero = 8.0 if self.format == "int4" else 128.0
        zeros = zero if self.zeros is None else self.columns(self.zeros.astype(np.float64))
        return (self.codes - zeros) * self.columns(self.scales.astype(np.float64))


def quantized(x, group, act):
    """x after quantization in groups of columns, in float64: the definition of ActMode in csrc/ops/weights.h."""
    if act == "f32":
        return x.astype(np.float64)
    if act == "bf16":
        return oracle.rounded(x, "bfloat16")
    f = np.float32
    out = np.empty(x.shape, np.float64)
    for k in range(0, x.shape[1], group or 64):
        part = x[:, k : k + (group or 64)]
        amax = np.maximum(np.abs(part).max(1, keepdims=True), f(2.0**-96))
        largest = f(16256 if act == "a15" else 127)
        s = amax / largest
        code = np.rint(part * (largest / amax))
        value = s.astype(np.float64) * code
        if act == "a8r":
            padded = np.zeros((len(x), 128), f)
            padded[:, : part.shape[1]] = np.abs(part)
            lanes = np.zeros((len(x), 16), f)
            for i in range(8):
                lanes += padded[:, 16 * i : 16 * i + 16]
            for width in (8, 4, 2, 1):
                lanes = lanes[:, :width] + lanes[:, width : 2 * width]
            has_outlier = amax * f(part.shape[1]) > f(24) * lanes
            left = (part - value).astype(f)  # one rounding, as fma
            value += np.where(has_outlier, np.rint(left * (f(254) / s)) * (s / f(254)).astype(np.float64), 0)
        out[:, k : k + part.shape[1]] = value
    return out


def activations(rng, m, k):
    """Normal, with outliers that make a8r use its second byte in some rows and groups."""
    x = oracle.normal(rng, m, k)
    for row in range(0, m, 3):
        x[row, rng.integers(0, k)] *= 200
    return x


def bound(device, act):
    if act == "bf16" and device.name.endswith("bf16"):
        return 2e-6  # bf16 dot products round each pair
    return 1e-6


@pytest.mark.parametrize("act", MODES)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("has_zeros", [False, True], ids=["symmetric", "zeros"])
def test_linear_is_the_product_of_the_quantized_operands(device, act, format, group, has_zeros):
    rng = np.random.default_rng(50)
    for m, k, n in SHAPES:
        w = Weight(rng, (n, k), format=format, group=group, has_zeros=has_zeros)
        x, bias = activations(rng, m, k), oracle.normal(rng, n)
        got = ops.linear(x, w.packed(device, act), bias=bias, out=np.full((m, n), np.nan, np.float32))
        a = quantized(x, group, act)
        size = np.abs(a) @ np.abs(w.exact).T + np.abs(bias)
        assert_close(got, a @ w.exact.T + bias, relative=bound(device, act), scale=size, what=f"{m}x{k}x{n}")


@pytest.mark.parametrize("act", INTEGER_MODES)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("has_zeros", [False, True], ids=["symmetric", "zeros"])
def test_integer_modes_have_the_same_bits_on_every_backend_and_level(device, act, format, group, has_zeros):
    rng = np.random.default_rng(51)
    for (m, k, n), scale_dtype in zip(SHAPES[2:6], ["float16", "bfloat16"] * 2, strict=True):
        w = Weight(
            rng, (n, k), format=format, group=group, has_zeros=has_zeros, scale_dtype=scale_dtype if group else None
        )
        x, bias = activations(rng, m, k), oracle.normal(rng, n)
        expected = ops.linear(x, w.packed("reference", act), bias=bias)
        assert_same_bits(ops.linear(x, w.packed(device, act), bias=bias), expected, f"{m}x{k}x{n}")
