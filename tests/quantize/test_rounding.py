"""Rounding to nearest and GPTQ against their definitions in float64."""

from __future__ import annotations

import pytest
import torch

from fastllm.quantize.gptq import Hessian, gptq
from fastllm.quantize.grid import CLIPS, Codes, fit, round_to_nearest
from fastllm.quantize.settings import Scheme
from fastllm.quantize.statistics import InputStats, output_error

SCHEMES = [Scheme(bits, group, symmetric) for bits in (4, 8) for group in (32, -1) for symmetric in (True, False)]


def _weights(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    heavy = torch.randn(rows, cols, generator=g) * torch.rand(cols, generator=g)
    return heavy + (torch.rand(rows, cols, generator=g) > 0.99) * 3.0


def _inputs(count: int, cols: int, seed: int = 1) -> torch.Tensor:
    """Correlated, with channels of very different size, as real activations are."""
    g = torch.Generator().manual_seed(seed)
    mixing = torch.randn(cols, cols, generator=g) / cols**0.5 + torch.eye(cols)
    return torch.randn(count, cols, generator=g) @ mixing * torch.exp(torch.randn(cols, generator=g))


def _check_stored(found: Codes, dtype: torch.dtype) -> None:
    assert torch.equal(found.scales, found.scales.to(dtype).float()) and bool((found.scales > 0).all())
    assert found.zeros.min() >= 1 and found.codes.max() <= 2**found.scheme.bits - 1


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_each_weight_has_the_nearest_code_of_the_best_clipping(scheme: Scheme, dtype: torch.dtype) -> None:
    weights = _weights(10, 64)
    found = round_to_nearest(weights, scheme, dtype)
    _check_stored(found, dtype)
    size = 64 if scheme.group == -1 else scheme.group
    levels = torch.arange(2**scheme.bits, dtype=torch.float64)
    for row in range(10):
        for g in range(64 // size):
            w = weights[row, g * size : (g + 1) * size].double()
            errors = []
            for clip in CLIPS:
                scale, zero = (t.double() for t in fit(w.float(), scheme, dtype, clip))
                errors.append(((levels - zero) * scale - w.unsqueeze(1)).square().amin(1).sum())
            values = found.values()[row, g * size : (g + 1) * size].double()
            assert (values - w).square().sum() <= min(errors) * (1 + 1e-4)


def test_rows_of_zeros_stay_zero() -> None:
    for scheme in SCHEMES:
        assert bool((round_to_nearest(torch.zeros(3, 64), scheme, torch.float16).values() == 0).all())


def _gptq_by_definition(weights: torch.Tensor, gram: torch.Tensor, found: Codes, damp: float) -> torch.Tensor:
    """Codes one column after the other, on the grid of `found`: the error of a column is made up for by the columns
    that are left, through the inverse of what is left of H, which is inverted anew for every column."""
    w, h = weights.double().clone(), gram.double().clone()
    h.diagonal().add_(damp * h.diagonal().mean())
    size = w.shape[1] // found.scales.shape[1]
    order = torch.argsort(gram.diagonal(), descending=True, stable=True).tolist()
    codes = torch.empty_like(w)
    for i, k in enumerate(order):
        scale, zero = found.scales[:, k // size].double(), found.zeros[:, k // size].double()
        codes[:, k] = ((w[:, k] / scale).round() + zero).clamp(0, 2**found.scheme.bits - 1)
        left = order[i:]
        inverse = torch.linalg.inv(h[left][:, left])
        error = (w[:, k] - (codes[:, k] - zero) * scale) / inverse[0, 0]
        w[:, left] -= error.unsqueeze(1) * inverse[0]
    return codes


def test_gptq_is_its_definition() -> None:
    weights, inputs = _weights(12, 64), _inputs(500, 64)
    gram = inputs.T @ inputs
    found = gptq(weights, Hessian(gram, damp=0.05, is_ordered=True), gram, Scheme(4, 32, True), torch.float16, "static")
    expected = _gptq_by_definition(weights, gram, found, 0.05)
    # A weight halfway between two codes may fall to either side; what follows in its row then differs too.
    is_equal = (found.codes == expected).all(1)
    assert int(is_equal.sum()) >= 11, f"{int((~is_equal).sum())} of 12 rows differ"


@pytest.mark.parametrize("order", ["static", "group", "none"])
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_gptq_has_a_smaller_error_of_the_output(scheme: Scheme, order: str) -> None:
    weights, inputs = _weights(40, 128), _inputs(1000, 128)
    gram = inputs.T @ inputs
    hessian = Hessian(gram, damp=0.01, is_ordered=order != "none")
    found = gptq(weights, hessian, gram, scheme, torch.float16, order)
    _check_stored(found, torch.float16)
    assert (found.group_of is not None) == (order == "group" and scheme.group != -1)
    plain = round_to_nearest(weights, scheme, torch.float16)
    error, plain_error = (output_error(codes.values() - weights, gram) for codes in (found, plain))
    assert error < 0.9 * plain_error


def test_inputs_that_never_occur_do_not_break_gptq() -> None:
    weights, inputs = _weights(8, 64), _inputs(30, 64)  # fewer inputs than columns, and dead ones
    inputs[:, 10:20] = 0.0
    gram = inputs.T @ inputs
    found = gptq(weights, Hessian(gram, damp=0.01, is_ordered=True), gram, Scheme(4, 32, True), torch.float16, "static")
    assert bool(torch.isfinite(found.values()).all())


def test_statistics_are_sums_over_the_inputs() -> None:
    inputs = _inputs(70, 24)
    stats = InputStats.empty(24, torch.device("cpu"))
    for piece in inputs.split(13):
        stats.add(piece)
    assert torch.allclose(stats.gram, inputs.T @ inputs, rtol=1e-4, atol=1e-3) and stats.count == 70
    scales = torch.rand(24) + 0.5
    divided = stats.divided_by(scales)
    assert torch.allclose(divided.gram, (inputs / scales).T @ (inputs / scales), rtol=1e-4, atol=1e-3)
    assert torch.allclose(divided.abs_max, (inputs / scales).abs().amax(0))
