"""Integer weights: linear, embed and moe_ffn on codes, in every activation mode, format, group and level."""

import copy
import itertools

import numpy as np
import oracle
import pytest
from tolerances import REFERENCE, assert_close, assert_same_bits

from fastllm import ops
from fastllm.errors import InvalidRequestError, UnsupportedModelError

INTEGER_MODES = ["a8", "a8r", "a15"]
MODES = [*INTEGER_MODES, "bf16", "f32"]
FORMATS = ["int4", "int8"]
GROUPS = [32, 64, 128, 0]
BOUND = 1e-6  # of the sum of |terms|, against float64 on the same quantized operands
ZEROS = [pytest.param(False, id="symmetric"), pytest.param(True, id="zeros")]
# (M, K, N): tails of groups, panels and tiles.
SHAPES = [(0, 64, 8), (1, 1, 1), (2, 31, 5), (3, 33, 32), (7, 100, 33), (13, 257, 70)]


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

    def packed(self, device, act=None):
        return ops.PackedWeight.from_codes(
            self.codes,
            self.scales,
            self.zeros,
            format=self.format,
            group=self.group,
            act=act or ("bf16" if is_cuda(device) else "a8r"),
            scale_dtype=self.scale_dtype,
            device=device,
        )

    def expert(self, index):
        one = copy.copy(self)
        one.codes, one.scales = self.codes[index], self.scales[index]
        one.zeros = None if self.zeros is None else self.zeros[index]
        return one

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


def is_cuda(device):
    name = device if isinstance(device, str) else device.name
    return name.startswith("cuda")


@pytest.fixture(autouse=True)
def skip_f32_on_cuda(request):
    """Tensor cores multiply integers and bf16; float32 is refused there (test_cuda_refuses_float32_activations)."""
    params = request.node.callspec.params if hasattr(request.node, "callspec") else {}
    if is_cuda(params.get("device", "")) and params.get("act") == "f32":
        pytest.skip("the mode is one of the host's")


def test_cuda_refuses_float32_activations():
    w = Weight(np.random.default_rng(59), (32, 64))
    with pytest.raises(UnsupportedModelError, match=r"activation mode f32 .* use bf16"):
        w.packed("cuda:emulated", "f32")


def activations(rng, m, k):
    """Normal, with outliers that make a8r use its second byte in some rows and groups."""
    x = oracle.normal(rng, m, k)
    for row in range(0, m, 3):
        x[row, rng.integers(0, k)] *= 200
    return x


@pytest.mark.parametrize("act", MODES)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("has_zeros", ZEROS)
def test_linear_is_the_product_of_the_quantized_operands(device, act, format, has_zeros):
    rng = np.random.default_rng(50)
    for group, (m, k, n) in itertools.product(GROUPS, SHAPES):
        w = Weight(rng, (n, k), format=format, group=group, has_zeros=has_zeros)
        x, bias = activations(rng, m, k), oracle.normal(rng, n)
        got = ops.linear(x, w.packed(device, act), bias=bias, out=np.full((m, n), np.nan, np.float32))
        a = quantized(x, group, act)
        size = np.abs(a) @ np.abs(w.exact).T + np.abs(bias)
        assert_close(got, a @ w.exact.T + bias, relative=BOUND, scale=size, what=f"group {group}, {m}x{k}x{n}")


@pytest.mark.parametrize("act", INTEGER_MODES)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("has_zeros", ZEROS)
def test_integer_modes_have_the_same_bits_on_every_backend_and_level(device, act, format, has_zeros):
    rng = np.random.default_rng(51)
    for group, (m, k, n) in itertools.product(GROUPS, [*SHAPES, (26, 192, 65)]):
        scale_dtype = ["float16", "bfloat16"][m % 2] if group else None
        w = Weight(rng, (n, k), format=format, group=group, has_zeros=has_zeros, scale_dtype=scale_dtype)
        x, bias = activations(rng, m, k), oracle.normal(rng, n)
        expected = ops.linear(x, w.packed("reference", act), bias=bias)
        assert_same_bits(
            ops.linear(x, w.packed(device, act), bias=bias), expected, f"group {group}, {scale_dtype}, {m}x{k}x{n}"
        )


@pytest.mark.parametrize("act", MODES)
@pytest.mark.parametrize("format", FORMATS)
def test_a_row_does_not_depend_on_its_batch_or_the_threads(device, act, format):
    rng = np.random.default_rng(52)
    for group, has_zeros in [(64, False), (0, True)]:
        w = Weight(rng, (100, 200), format=format, group=group, has_zeros=has_zeros)
        x = activations(rng, 101, 200)
        packed = w.packed(device, act)
        whole = ops.linear(x, packed)
        for begin, end in [*((3, 3 + m) for m in range(1, 14)), (0, 97), (100, 101)]:
            assert_same_bits(ops.linear(x[begin:end], packed), whole[begin:end], f"rows {begin}:{end}")
        if device.name.startswith("cpu"):
            for threads in (1, 3):
                other = ops.Device(device.name, num_threads=threads)
                assert_same_bits(ops.linear(x, w.packed(other, act)), whole, f"{threads} threads")


def test_an_outlier_does_not_touch_the_zero_signs_of_its_neighbours(device):
    """Products that underflow to -0: adding 0 for a neighbour's remainder would make them +0."""
    k, n = 64, 32
    codes = np.full((n, k), 15, np.uint8)
    scales = np.full((n, 1), 2.0**-126, np.float32)
    w = ops.PackedWeight.from_codes(
        codes, scales, group=64, format="int4", act="a8r", scale_dtype="bfloat16", device=device
    )
    x = np.full((6, k), -1e-28, np.float32)
    alone = ops.linear(x[:1], w)
    assert np.signbit(alone).all() and (alone == 0).all()
    x[3:, 5] = 1e4
    x[3:, 6:] = 1e-3
    assert_same_bits(ops.linear(x, w)[:3], np.repeat(alone, 3, 0))


@pytest.mark.parametrize("act", INTEGER_MODES)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("group", GROUPS)
def test_the_largest_sums_are_exact(device, act, format, group):
    """Codes and zeros at both ends against activations of +-amax: nothing saturates or wraps."""
    k, n = 256, 34
    top, top_zero = (15, 16) if format == "int4" else (255, 255)
    rng = np.random.default_rng(53)
    signs = rng.choice(np.array([-127, 127], np.float32), (5, k))
    x = np.concatenate([np.full((1, k), 127, np.float32), np.full((1, k), -127, np.float32), signs])
    for code, zero in itertools.product((0, top), (None, 0, top_zero)):
        w = Weight(rng, (n, k), format=format, group=group, codes=np.full((n, k), code, np.uint8))
        w.scales = np.ones_like(w.scales)
        w.zeros = None if zero is None else np.full(w.scales.shape, zero, np.uint8)
        got = ops.linear(x, w.packed(device, act))
        assert_same_bits(got, (x.astype(np.float64) @ w.exact.T).astype(np.float32), f"code {code}, zero {zero}")


@pytest.mark.parametrize("act", INTEGER_MODES)
def test_scales_of_every_kind(device, act):
    """0, subnormals, infinity and NaN in scales; activations from subnormal to the largest."""
    rng = np.random.default_rng(54)
    for scale_dtype, tiny in [("float16", 2.0**-24), ("bfloat16", 2.0**-133)]:
        w = Weight(rng, (40, 64), group=32, scale_dtype=scale_dtype)
        w.codes[5] = 8
        w.scales[0], w.scales[1], w.scales[2], w.scales[3], w.scales[5] = 0, tiny, np.inf, np.nan, np.inf
        x = oracle.normal(rng, 5, 64)
        x[1] *= 1e-42
        x[2] *= 1e30
        x[3] = 0
        got = ops.linear(x, w.packed(device, act))
        expected = ops.linear(x, w.packed("reference", act))
        np.testing.assert_array_equal(got, expected)  # a NaN equals a NaN of other bits
        assert (got[:, 0] == 0).all() and np.isnan(got[:, 3]).all() and np.isnan(got[:, 5]).all()
        assert np.isfinite(got[:, 6:]).all() and (got[3, 6:] == 0).all()


@pytest.mark.parametrize("act", MODES)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_shows_in_its_row_alone(device, act, format, bad):
    rng = np.random.default_rng(55)
    w = Weight(rng, (33, 100), format=format, group=64)
    packed = w.packed(device, act)
    x = activations(rng, 7, 100)
    clean = ops.linear(x, packed)
    x[2, 70] = bad
    got = ops.linear(x, packed)
    assert not np.isfinite(got[2]).any()
    if act in INTEGER_MODES or np.isnan(bad):
        assert np.isnan(got[2]).all()
    assert_same_bits(np.delete(got, 2, 0), np.delete(clean, 2, 0))


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("group", GROUPS)
@pytest.mark.parametrize("has_zeros", ZEROS)
def test_embed_reads_rows_back(device, format, group, has_zeros):
    rng = np.random.default_rng(56)
    w = Weight(rng, (70, 75), format=format, group=group, has_zeros=has_zeros)
    ids = np.array([0, 69, 15, 16, 31, 32, 40], np.int32)
    rows = w.exact[ids].astype(np.float32)
    assert_same_bits(ops.embed(ids, w.packed(device)), rows)
    assert_same_bits(ops.embed(ids, w.packed(device), scale=7.3), rows * np.float32(7.3))


@pytest.mark.parametrize("act", MODES)
@pytest.mark.parametrize("format", FORMATS)
def test_moe_ffn_is_the_weighted_sum_of_its_experts(device, act, format):
    """Each expert by the device's own linear and gated_activation, which have oracles of their own."""
    rng = np.random.default_rng(57)
    num_experts, hidden, ffn, tokens, k = 6, 72, 40, 23, 3
    gate_up = Weight(rng, (num_experts, 2 * ffn, hidden), format=format, group=32, has_zeros=True)
    down = Weight(rng, (num_experts, hidden, ffn), format=format, group=0)
    x = activations(rng, tokens, hidden)
    experts = np.stack([rng.permutation(num_experts)[:k] for _ in range(tokens)]).astype(np.int32)
    weights = rng.random((tokens, k), np.float32)
    packed = {"gate_up": gate_up.packed(device, act), "down": down.packed(device, act)}
    got = ops.moe_ffn(x, experts, weights, **packed, out=np.full_like(x, np.nan))

    expected, size = np.zeros_like(x), np.zeros_like(x)
    for e in range(num_experts):
        gated = ops.gated_activation(ops.linear(x, gate_up.expert(e).packed(device, act)), device=device)
        y = ops.linear(gated, down.expert(e).packed(device, act))
        for t, j in zip(*np.nonzero(experts == e), strict=True):
            term = weights[t, j].astype(np.float64) * y[t]
            expected[t] = expected[t] + term  # rounded once, as a fused multiply-add
            size[t] += np.abs(term)
    if device.name == "reference":  # rounds neither the terms nor their sums
        assert_close(got, expected, relative=REFERENCE, scale=size)
    else:
        assert_same_bits(got, expected)
    for t in (0, 7, 22):
        rows = slice(t, t + 1)
        alone = ops.moe_ffn(x[rows], experts[rows], weights[rows], **packed)
        assert_same_bits(alone[0], got[t], f"token {t} alone")
    if act in INTEGER_MODES and device.name.startswith("cpu"):
        scalar = {"gate_up": gate_up.packed("cpu:scalar", act), "down": down.packed("cpu:scalar", act)}
        assert_same_bits(got, ops.moe_ffn(x, experts, weights, **scalar), "levels")


CODES = np.full((4, 64), 3, np.uint8)
SCALES = np.ones((4, 1), np.float32)


def packed(codes=CODES, scales=SCALES, zeros=None, **options):
    return ops.PackedWeight.from_codes(codes, scales, zeros, device="reference", **options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: packed(group=48), "PackedWeight: group is 48, expected 32, 64, 128, or 0 for whole rows"),
        (lambda: packed(group=-64), "PackedWeight: group is -64"),
        (lambda: packed(format="int3"), 'format is "int3"; int8, int4 and fp8 are known'),
        (lambda: packed(act="a16"), 'act is "a16"; a8, a8r, a15, bf16, f32 and fp8 are known'),
        (lambda: packed(scale_dtype="float32"), "scale_dtype is float32, expected float16 or bfloat16"),
        (lambda: packed(group=0, scale_dtype="float16"), "scale_dtype is float16, expected float32"),
        (lambda: packed(group=32), r"PackedWeight: scales has 4 elements, expected 8"),
        (lambda: packed(zeros=CODES[:, :2].copy()), "PackedWeight: zeros has 8 elements, expected 4"),
        (lambda: packed(codes=CODES.astype(np.int32)), "PackedWeight: codes is int32, expected uint8"),
        (lambda: packed(scales=SCALES.astype(np.float16)), "PackedWeight: scales is float16, expected float32"),
        (lambda: packed(codes=CODES[:, :0]), "PackedWeight: K is 0"),
        (lambda: packed(codes=CODES + np.uint8(13)), r"codes\[0, 0\] is 16, expected 0 to 15 for int4"),
        (lambda: packed(zeros=np.full((4, 1), 17, np.uint8)), r"zeros\[0, 0\] is 17, expected 0 to 16 for int4"),
        (lambda: packed(scales=SCALES * np.float32(0.1)), r"scales\[0, 0\] is 0.1, which is not a float16"),
        (lambda: packed(scales=SCALES * np.float32(1e6)), r"scales\[0, 0\] is 1e\+06, which is not a float16"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_a_wrong_argument_is_named(call, message):
    with pytest.raises(InvalidRequestError, match=message):
        call()
