// exp, sigmoid and tanh of 16 lanes: one polynomial each, the same order of operations on every level (relative error
// of exp < 2e-7). Coefficients: Cephes expf and tanhf.
#pragma once

#include "cpu/simd.h"

namespace fastllm::cpu::FASTLLM_ISA {

// exp(x) = 2^n * exp(r), n = round(x / ln 2), |r| <= ln 2 / 2. 0 below the smallest normal number; infinity above 88,
// a little early, so that 2^n is always representable. NaN stays NaN.
constexpr float kLowestExponent = -87.33654f;
constexpr float kHighestExponent = 88.0f;

FASTLLM_INLINE Vec exp_in_range(Vec clamped) {
  const Vec magic = set1(12582912.0f);  // 1.5 * 2^23: the sum has its integer part in the low mantissa bits
  const Vec t = fma(clamped, set1(1.44269504088896341f), magic);
  const Vec n = sub(t, magic);
  Vec r = fma(n, set1(-0.693359375f), clamped);
  r = fma(n, set1(2.12194440e-4f), r);
  Vec p = fma(set1(1.9875691500e-4f), r, set1(1.3981999507e-3f));
  p = fma(p, r, set1(8.3334519073e-3f));
  p = fma(p, r, set1(4.1665795894e-2f));
  p = fma(p, r, set1(1.6666665459e-1f));
  p = fma(p, r, set1(5.0000001201e-1f));
  p = add(fma(p, mul(r, r), r), set1(1.0f));
  return scale2(p, t);
}

FASTLLM_INLINE Vec exp(Vec x) {
  Vec y = exp_in_range(min(set1(kHighestExponent), max(set1(kLowestExponent), x)));
  y = select(less(set1(kHighestExponent), x), set1(kInfinity), y);
  y = select(less(x, set1(kLowestExponent)), zero(), y);
  return select(is_number(x), y, x);
}

// exp of x <= 0, the same bits. (max() lets a NaN in its second argument through.)
FASTLLM_INLINE Vec exp_negative(Vec x) {
  const Vec y = exp_in_range(max(set1(kLowestExponent), x));
  return select(less(x, set1(kLowestExponent)), zero(), y);
}

FASTLLM_INLINE Vec sigmoid(Vec x) { return div(set1(1.0f), add(set1(1.0f), exp(sub(zero(), x)))); }

// Small |x|: odd polynomial. Otherwise 1 - 2 / (exp(2 |x|) + 1) with the sign of x.
FASTLLM_INLINE Vec tanh(Vec x) {
  const Vec positive = max(sub(zero(), x), x);
  const Vec z = mul(x, x);
  Vec p = fma(set1(-5.70498872745e-3f), z, set1(2.06390887954e-2f));
  p = fma(p, z, set1(-5.37397155531e-2f));
  p = fma(p, z, set1(1.33314422036e-1f));
  p = fma(p, z, set1(-3.33332819422e-1f));
  const Vec small = fma(mul(p, z), x, x);
  const Vec large = sub(set1(1.0f), div(set1(2.0f), add(exp(add(positive, positive)), set1(1.0f))));
  const Vec signed_large = select(less(x, zero()), sub(zero(), large), large);
  return select(less(positive, set1(0.625f)), small, signed_large);
}

// exp of one number, through the same polynomial.
FASTLLM_INLINE float exp1(float x) {
  float y[16];
  store(y, exp(set1(x)));
  return y[0];
}

}  // namespace fastllm::cpu::FASTLLM_ISA
