"""embed, rms_norm, linear, gated_activation, add, softcap: against float64, and row by row bit for bit."""

import numpy as np
import oracle
import pytest
import torch
from tolerances import assert_close, assert_same_bits

from fastllm import ops

SHAPES = [(1, 1, 1), (2, 3, 5), (7, 17, 31), (5, 64, 48), (33, 111, 130), (0, 8, 8), (16, 989, 67), (3, 256, 512)]
IDS = lambda s: "x".join(map(str, s)) if isinstance(s, tuple) else None  # noqa: E731


def poisoned(*shape):
    return np.full(shape, np.nan, np.float32)


@pytest.mark.parametrize("dtype", oracle.DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=IDS)
def test_linear_is_the_matrix_product(device, shape, dtype):
    m, k, n = shape
    rng = np.random.default_rng(1)
    x, bias = oracle.normal(rng, m, k), oracle.normal(rng, n)
    w, exact = oracle.weight(rng, (n, k), dtype)
    packed = ops.PackedWeight(w, device=device)
    got = ops.linear(x, packed, bias=bias, out=poisoned(m, n))
    size = np.abs(x.astype(np.float64)) @ np.abs(exact).T + np.abs(bias)
    relative = oracle.relative(device, weights=dtype)
    assert_close(got, x.astype(np.float64) @ exact.T + bias, relative=relative, scale=size)
    without_bias = ops.linear(x, packed)
    assert_close(without_bias, x.astype(np.float64) @ exact.T, relative=relative, scale=size)


@pytest.mark.parametrize("dtype", oracle.DTYPES)
@pytest.mark.parametrize("shape", [(40, 64, 48), (70, 333, 37), (9, 1024, 100), (40, 1024, 100)], ids=IDS)
def test_a_row_of_linear_does_not_depend_on_its_batch(device, shape, dtype):
    m, k, n = shape
    rng = np.random.default_rng(2)
    x = oracle.normal(rng, m, k)
    w, _ = oracle.weight(rng, (n, k), dtype)
    packed = ops.PackedWeight(w, device=device)
    whole = ops.linear(x, packed)
    for begin, end in [(0, 1), (m - 1, m), (0, 2), (3, 7), (1, 9), (m // 2, m)]:
        assert_same_bits(ops.linear(x[begin:end], packed), whole[begin:end], f"rows {begin}:{end}")


def test_linear_converts_weights_and_takes_strided_ones(device):
    rng = np.random.default_rng(3)
    w = oracle.normal(rng, 24, 40)
    x = oracle.normal(rng, 4, 40)
    expected = ops.linear(x, ops.PackedWeight(torch.from_numpy(w).bfloat16(), device=device))
    assert_same_bits(ops.linear(x, ops.PackedWeight(w, dtype="bfloat16", device=device)), expected, "converted")
    transposed = np.ascontiguousarray(w.T).T
    assert_same_bits(
        ops.linear(x, ops.PackedWeight(transposed, dtype="bfloat16", device=device)), expected, "transposed"
    )


def test_rows_of_inputs_and_outputs_may_lie_apart(device):
    rng = np.random.default_rng(4)
    wide = oracle.normal(rng, 6, 100)
    packed = ops.PackedWeight(oracle.normal(rng, 30, 50), device=device)
    out = poisoned(6, 64)
    got = ops.linear(wide[:, 10:60], packed, out=out[:, 5:35])
    assert_same_bits(np.ascontiguousarray(got), ops.linear(wide[:, 10:60].copy(), packed))
    assert np.isnan(out[:, :5]).all() and np.isnan(out[:, 35:]).all(), "columns beside the output were written"


def test_nan_stays_in_its_row_of_linear(device):
    rng = np.random.default_rng(5)
    x = oracle.normal(rng, 5, 33)
    packed = ops.PackedWeight(oracle.normal(rng, 20, 33), device=device)
    clean = ops.linear(x, packed)
    x[2, 7] = np.nan
    got = ops.linear(x, packed)
    assert np.isnan(got[2]).all()
    assert_same_bits(np.delete(got, 2, 0), np.delete(clean, 2, 0))


@pytest.mark.parametrize("dtype", oracle.DTYPES)
@pytest.mark.parametrize("ids_dtype", [np.int32, np.int64])
def test_embed_gathers_scaled_rows(device, dtype, ids_dtype):
    rng = np.random.default_rng(6)
    w, exact = oracle.weight(rng, (37, 51), dtype)
    ids = np.array([0, 36, 5, 5, 20], ids_dtype)
    table = ops.PackedWeight(w, device=device)
    assert_same_bits(ops.embed(ids, table, out=poisoned(5, 51)), exact[ids].astype(np.float32))
    scaled = (exact[ids].astype(np.float32) * np.float32(7.5)).astype(np.float32)
    assert_same_bits(ops.embed(ids, table, scale=7.5), scaled)
    assert ops.embed(ids[:0], table).shape == (0, 51)


def float64_norm(x, w, eps, offset, group):
    groups = x.astype(np.float64).reshape(len(x), x.shape[1] // group, group)
    y = groups / np.sqrt((groups**2).mean(-1, keepdims=True) + eps) * (w.astype(np.float64) + offset)
    return y.reshape(x.shape)


@pytest.mark.parametrize("shape", [(0, 8), (1, 1), (3, 7), (5, 64), (9, 111), (4, 1000)], ids=IDS)
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_rms_norm_of_rows(device, shape, offset):
    rng = np.random.default_rng(7)
    x, residual, w = oracle.normal(rng, *shape), oracle.normal(rng, *shape), oracle.normal(rng, shape[1])
    relative = oracle.relative(device)
    y = ops.rms_norm(x, w, eps=1e-5, weight_offset=offset, device=device, out=poisoned(*shape))
    assert_close(y, float64_norm(x, w, 1e-5, offset, shape[1]), relative=relative)
    y, total = ops.rms_norm(x, w, residual=residual, eps=1e-5, weight_offset=offset, device=device)
    assert_same_bits(total, x + residual, "residual")
    assert_close(y, float64_norm(x + residual, w, 1e-5, offset, shape[1]), relative=relative)
    for t in range(shape[0]):
        alone, _ = ops.rms_norm(
            x[t : t + 1], w, residual=residual[t : t + 1], eps=1e-5, weight_offset=offset, device=device
        )
        assert_same_bits(alone[0], y[t], f"row {t} alone")


def test_rms_norm_per_head(device):
    rng = np.random.default_rng(8)
    x, w = oracle.normal(rng, 5, 3 * 16), oracle.normal(rng, 16)
    assert_close(ops.rms_norm(x, w, device=device), float64_norm(x, w, 1e-6, 0.0, 16), relative=oracle.relative(device))


def test_rms_norm_of_chosen_rows_leaves_the_residual_alone(device):
    rng = np.random.default_rng(9)
    x, residual, w = oracle.normal(rng, 6, 40), oracle.normal(rng, 6, 40), oracle.normal(rng, 40)
    rows = np.array([5, 0, 0, 3], np.int32)
    whole, _ = ops.rms_norm(x, w, residual=residual, device=device)
    y, untouched = ops.rms_norm(x, w, residual=residual, row_ids=rows, device=device)
    assert_same_bits(y, whole[rows])
    assert_same_bits(untouched, residual)
    none, _ = ops.rms_norm(x, w, residual=residual, row_ids=rows[:0], device=device)
    assert none.shape == (0, 40)


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh", "clamped_swiglu"])
@pytest.mark.parametrize("features", [1, 7, 64, 111])
def test_gated_activation(device, kind, features):
    rng = np.random.default_rng(10)
    both = 6 * oracle.normal(rng, 5, 2 * features)
    both[0, 0], both[1, 0] = 100.0, -100.0  # where exp over- and underflows
    got = ops.gated_activation(both, activation=kind, device=device, out=poisoned(5, features))
    gate, up = both[:, :features], both[:, features:]
    size = np.abs(gate.astype(np.float64)) * (np.abs(up) + 1)
    assert_close(got, oracle.gated(kind, gate, up), relative=oracle.relative(device), scale=size)
    for t in range(5):
        assert_same_bits(ops.gated_activation(both[t : t + 1], activation=kind, device=device)[0], got[t])


@pytest.mark.parametrize("shape", [(0, 5), (1, 1), (4, 33), (7, 256)], ids=IDS)
def test_add_and_softcap(device, shape):
    rng = np.random.default_rng(11)
    residual, x, gate = oracle.normal(rng, *shape), 30 * oracle.normal(rng, *shape), oracle.normal(rng, shape[0], 1)
    relative = oracle.relative(device)
    assert_same_bits(ops.add(residual, x, device=device), residual + x)
    exact = residual + x.astype(np.float64) * oracle.sigmoid(gate.astype(np.float64))
    assert_close(
        ops.add(residual, x, gate=gate, device=device), exact, relative=relative, scale=np.abs(residual) + np.abs(x)
    )
    capped = ops.softcap(x, 30.0, device=device)
    assert_close(capped, 30.0 * np.tanh(x.astype(np.float64) / 30.0), relative=relative, scale=30.0)
