"""FP8 (e4m3) weights with float32 scales: linear, embed and moe_ffn, activations in bf16 and in fp8, on the reference
and on CUDA; others refuse."""

import numpy as np
import oracle
import pytest
import torch
from tolerances import assert_close, assert_same_bits

from fastllm import ops
from fastllm.errors import InvalidRequestError, UnsupportedModelError

GROUPS = [32, 64, 128, 0]
SHAPES = [(0, 64, 8), (1, 1, 1), (3, 33, 32), (7, 100, 33), (13, 257, 70), (70, 128, 17), (2, 1100, 20)]  # M, K, N


def bound(device, act):
    """Of the sum of |terms|, against float64 on the same operands. Tensor cores align products of fp8 to the largest of
    32 and keep about 13 bits."""
    is_chip = device.name.startswith("cuda") and device.name != "cuda:emulated"
    return 2.0**-9 if act == "fp8" and is_chip else 1e-6


@pytest.fixture(params=[name for name in oracle.device_names() if not name.startswith("cpu")], scope="module")
def device(request):
    return ops.Device(request.param)


class Weight:
    """Every code that is a number, scales of any size, and what they mean in float64."""

    def __init__(self, rng, shape, group):
        self.group = group
        groups = -(-shape[-1] // group) if group else 1
        codes = rng.integers(0, 255, shape, dtype=np.uint8)
        self.codes = np.where(codes >= 127, codes + 1, codes).astype(np.uint8)
        self.codes[self.codes == 255] = 0
        self.scales = np.exp(rng.uniform(-9, 0, (*shape[:-1], groups))).astype(np.float32)
        spread = np.repeat(self.scales, group or shape[-1], axis=-1)[..., : shape[-1]]
        values = torch.from_numpy(self.codes).view(torch.float8_e4m3fn).double().numpy()
        self.exact = values * spread

    def packed(self, device, act="bf16"):
        return ops.PackedWeight.from_codes(
            self.codes, self.scales, format="fp8", group=self.group, act=act, device=device
        )


def as_met(x, act, group):
    """The values of activations as the products take them, in float64."""
    if act == "bf16":
        return oracle.rounded(x, "bfloat16")
    met = np.empty(x.shape)
    width = group or 64
    for begin in range(0, x.shape[-1], width):
        part = x[..., begin : begin + width]
        amax = np.maximum(np.abs(part).max(-1, keepdims=True), np.float32(2.0**-96))
        codes = torch.from_numpy(part * (np.float32(448) / amax)).to(torch.float8_e4m3fn).double().numpy()
        met[..., begin : begin + width] = codes * (amax / np.float32(448)).astype(np.float64)
    return met


ACTS = pytest.mark.parametrize("act", ["bf16", "fp8"])


@ACTS
@pytest.mark.parametrize("group", GROUPS)
def test_linear_is_the_product_with_the_decoded_weight(device, group, act):
    """Nothing of the weight is rounded; activations are, to bfloat16 or to e4m3 with a scale of their group."""
    rng = np.random.default_rng(80)
    for m, k, n in SHAPES:
        w = Weight(rng, (n, k), group)
        x, bias = oracle.normal(rng, m, k), oracle.normal(rng, n)
        got = ops.linear(x, w.packed(device, act), bias=bias, out=np.full((m, n), np.nan, np.float32))
        a = as_met(x, act, group)
        size = np.abs(a) @ np.abs(w.exact).T + np.abs(bias)
        assert_close(got, a @ w.exact.T + bias, relative=bound(device, act), scale=size, what=f"{m}x{k}x{n}")


def test_each_code_is_worth_what_torch_says(device):
    codes = np.array([c for c in range(256) if c & 0x7F != 0x7F], np.uint8)[:, None]
    w = ops.PackedWeight.from_codes(
        codes, np.ones((254, 1), np.float32), format="fp8", group=0, act="bf16", device=device
    )
    exact = torch.from_numpy(codes).view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(ops.linear(np.ones((1, 1), np.float32), w)[0], exact[:, 0])
    assert np.array_equal(ops.embed(np.arange(254, dtype=np.int32), w), exact)


@pytest.mark.parametrize("group", GROUPS)
def test_embed_reads_rows_back(device, group):
    rng = np.random.default_rng(81)
    w = Weight(rng, (70, 75), group)
    ids = np.array([0, 69, 15, 16, 31, 32, 40], np.int32)
    assert_same_bits(ops.embed(ids, w.packed(device)), w.exact[ids].astype(np.float32))


@ACTS
def test_a_row_does_not_depend_on_its_batch(device, act):
    rng = np.random.default_rng(82)
    packed = Weight(rng, (40, 1200), 64).packed(device, act)
    x = oracle.normal(rng, 40, 1200)
    whole = ops.linear(x, packed)
    for begin, end in [(3, 4), (0, 7), (5, 18), (2, 30), (39, 40)]:
        assert_same_bits(ops.linear(x[begin:end], packed), whole[begin:end], f"rows {begin}:{end}")


def test_activations_in_fp8_keep_what_is_far_from_one(device):
    """Groups have scales of their own: sizes from 2^-60 to 2^60 in one row, zeros, numbers below what e4m3 can hold."""
    rng = np.random.default_rng(85)
    w = Weight(rng, (16, 256), 64)
    x = oracle.normal(rng, 3, 256) * np.repeat(np.float32([2.0**-60, 2.0**60, 1, 1]), 64)
    x[:, 128:192] = 0
    x[:, 200:] *= np.float32(2.0**-20)
    got = ops.linear(x, w.packed(device, "fp8"))
    a = as_met(x, "fp8", 64)
    assert_close(got, a @ w.exact.T, relative=bound(device, "fp8"), scale=np.abs(a) @ np.abs(w.exact).T)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_row(device, bad):
    rng = np.random.default_rng(86)
    packed = Weight(rng, (20, 200), 32).packed(device, "fp8")
    x = oracle.normal(rng, 5, 200)
    clean = ops.linear(x, packed)
    x[2, 77] = bad
    got = ops.linear(x, packed)
    assert np.isnan(got[2]).all()
    rest = [0, 1, 3, 4]
    assert_same_bits(got[rest], clean[rest])


@ACTS
def test_moe_ffn_with_fp8_experts(device, act):
    rng = np.random.default_rng(83)
    num_experts, hidden, ffn, tokens, k = 6, 72, 40, 23, 3
    gate_up = Weight(rng, (num_experts, 2 * ffn, hidden), 32)
    down = Weight(rng, (num_experts, hidden, ffn), 0)
    gate_up.exact /= 100  # so that gates are of order one
    gate_up.scales /= np.float32(100)
    x = oracle.normal(rng, tokens, hidden)
    experts = np.stack([rng.permutation(num_experts)[:k] for _ in range(tokens)]).astype(np.int32)
    weights = rng.random((tokens, k), np.float32)
    packed = {"gate_up": gate_up.packed(device, act), "down": down.packed(device, act)}
    got = ops.moe_ffn(x, experts, weights, **packed, out=np.full_like(x, np.nan))
    exact, size = np.zeros(x.shape), np.zeros(x.shape)
    a = as_met(x, act, 32)
    for t in range(tokens):
        for e, weight in zip(experts[t], weights[t], strict=True):
            both = gate_up.exact[e] @ a[t]
            gated = as_met(oracle.gated("silu", both[:ffn], both[ffn:]).astype(np.float32), act, 0)
            exact[t] += weight * (down.exact[e] @ gated)
            size[t] += weight * (np.abs(down.exact[e]) @ np.abs(gated))
    # A gate that lies between two codes may be rounded the other way: half a step of its type.
    assert_close(got, exact, relative=2.0**-8 if act == "bf16" else 2.0**-4, scale=size)
    assert_same_bits(ops.moe_ffn(x[7:8], experts[7:8], weights[7:8], **packed)[0], got[7])


def test_what_is_refused():
    w = Weight(np.random.default_rng(84), (32, 64), 64)
    with pytest.raises(UnsupportedModelError, match="packed fp8 weights are for CUDA"):
        w.packed("cpu")
    with pytest.raises(UnsupportedModelError, match="activation mode f32 is for processors"):
        w.packed("cuda:emulated", "f32")
    with pytest.raises(InvalidRequestError, match="act is a8, expected bf16, f32 or fp8 for fp8"):
        w.packed("reference", "a8")
    for device in ("cpu", "reference"):
        with pytest.raises(InvalidRequestError, match="act is fp8, which is for weights of fp8"):
            ops.PackedWeight.from_codes(
                w.codes, w.scales, format="int8", group=64, act="fp8", scale_dtype="float16", device=device
            )
    w.codes[3, 5] = 0x7F
    with pytest.raises(InvalidRequestError, match=r"codes\[3, 5\] is NaN"):
        w.packed("reference")
