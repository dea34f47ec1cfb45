"""One table of tolerances. A result may differ from its oracle by `relative` times the size of the summed terms.

The bound of a sum of n products in float32 is about n * 2^-24 * sum|a||b| in the worst case and sqrt(n) of that in
practice; the factors below cover sqrt(n) up to 2^14 terms. Storage in half precision is not part of them: oracles are
given the rounded weights and caches.
"""

import numpy as np

FLOAT32_EPSILON = 2.0**-24
# Operation -> relative bound against float64. `reference` sums in double and rounds once: half an ulp, with slack for
# a second rounding of an intermediate (the gated activation, the residual).
REFERENCE = 4 * FLOAT32_EPSILON
# Vectorised kernels sum in float32 and use polynomials for exp and tanh.
CPU = 128 * FLOAT32_EPSILON
# The bf16 level and tensor cores multiply activations rounded to bfloat16: 2^-9 relative for each product, of either
# sign.
BF16_ACTIVATIONS = 2.0**-8
# Beside float16 weights, tensor cores take activations in float16: 2^-12.
F16_ACTIVATIONS = 2.0**-11
# An error of a score multiplies a probability, so rounding grows with the size of the scores.
CPU_ATTENTION = 8 * CPU
# bf16 K/V on the bf16 level: q and the weights of V are rounded to bfloat16 too (2^-9 of each product).
CPU_ATTENTION_BF16 = 2.0**-7
# int8 K/V: q and the weights of V become 15-bit integers, in units of the largest of 32 dimensions or 256 tokens.
# Relative to the dimension in which the sum of terms is largest.
CPU_ATTENTION_INT8 = 2.0**-13
# Tensor cores: q and the weights of V are rounded to the type that is multiplied in, bf16 or half (int8 and fp8: half).
CUDA_ATTENTION = {
    "float32": CPU_ATTENTION, "bfloat16": 2.0**-7, "float16": 2.0**-10, "int8": 2.0**-10, "fp8": 2.0**-10,
}  # fmt: skip


def assert_close(got, expected, *, relative, scale=None, what="result"):
    """|got - expected| <= relative * scale, elementwise; scale defaults to the largest |expected| of the row."""
    got = np.asarray(got, np.float64)
    expected = np.asarray(expected, np.float64)
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    if got.size == 0:
        return
    if scale is None:
        scale = np.abs(expected).max(axis=-1, keepdims=True)
    bound = np.broadcast_to(relative * np.asarray(scale) + 1e-30, got.shape)
    error = np.abs(got - expected)
    is_bad = ~(error <= bound)
    if is_bad.any():
        excess = np.where(np.isnan(error), np.inf, error / bound)
        worst = np.unravel_index(np.argmax(excess), got.shape)
        raise AssertionError(
            f"{what}: {is_bad.sum()} of {got.size} differ; worst at {tuple(int(i) for i in worst)}: "
            f"{got[worst]!r}, expected {expected[worst]!r}, bound {bound[worst]:.3g}"
        )


def assert_same_bits(got, expected, what="result"):
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, f"{what}: shape {got.shape}, expected {expected.shape}"
    is_same = got.view(np.uint8).reshape(-1) == expected.view(np.uint8).reshape(-1)
    assert is_same.all(), f"{what}: {np.count_nonzero(got != expected)} of {got.size} elements differ in their bits"
