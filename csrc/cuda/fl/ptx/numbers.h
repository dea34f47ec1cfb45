// Conversions, packed arithmetic on pairs of halves, bit selection, approximate functions.
#pragma once

#include "cuda/fl/types.h"

namespace fl {

// One value. Rounding is to nearest even; NaN stays NaN; to_f16 overflows to infinity; to_e4m3 saturates at +-448.
__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __uint_as_float(static_cast<uint32_t>(x.bits) << 16); }
__device__ inline float to_float(f16 x) {
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
}
__device__ inline bf16 to_bf16(float x) {
  bf16 y;
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
__device__ inline f16 to_f16(float x) {
  f16 y;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
  return y;
}
template <class T>
__device__ inline T from_float(float x) {
  if constexpr (std::is_same_v<T, bf16>) {
    return to_bf16(x);
  } else if constexpr (std::is_same_v<T, f16>) {
    return to_f16(x);
  } else {
    return x;
  }
}

// Two values in a register.
__device__ inline uint32_t pack_bf16x2(float low, float high) {
  uint32_t y;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
__device__ inline uint32_t pack_f16x2(float low, float high) {
  uint32_t y;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(y) : "f"(high), "f"(low));
  return y;
}
__device__ inline Vec<float, 2> unpack_bf16x2(uint32_t x) {
  return {__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u)};
}
__device__ inline Vec<float, 2> unpack_f16x2(uint32_t x) {
  return {to_float(f16{static_cast<uint16_t>(x)}), to_float(f16{static_cast<uint16_t>(x >> 16)})};
}

// a * b, a - b and a * b + c, rounded once.
__device__ inline uint32_t sub_f16x2(uint32_t a, uint32_t b) {
  uint32_t y;
  asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
}
__device__ inline uint32_t mul_f16x2(uint32_t a, uint32_t b) {
  uint32_t y;
  asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(y) : "r"(a), "r"(b));
  return y;
}
__device__ inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t y;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(c));
  return y;
}
// sm_80 and sm_89 have no packed bf16 subtraction or multiplication: the same result by one fma with -1 or -0.
__device__ inline uint32_t sub_bf16x2(uint32_t a, uint32_t b) { return fma_bf16x2(b, 0xbf80bf80u, a); }
__device__ inline uint32_t mul_bf16x2(uint32_t a, uint32_t b) { return fma_bf16x2(a, b, 0x80008000u); }

// Byte i of the result is byte selector[4i..4i+2] of {a, b}.
__device__ inline uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t y;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(y) : "r"(a), "r"(b), "r"(selector));
  return y;
}

// Bytes I and J of x, two e4m3 that are not NaN, as halves. Exact.
template <int I, int J>
__device__ inline uint32_t f16x2_from_e4m3_bytes(uint32_t x) {
  static_assert(I >= 0 && I < 4 && J >= 0 && J < 4);
#if __CUDA_ARCH__ >= 890
  uint32_t y;
  asm("cvt.rn.f16x2.e4m3x2 %0, %1;" : "=r"(y) : "h"(static_cast<uint16_t>(prmt(x, 0u, I | J << 4))));
  return y;
#else
  // Sign to bit 15, the seven others one to the right of the top: a half of value / 256, then times 256.
  const uint32_t wide = prmt(x, 0u, 0x0404u | I << 4 | J << 12);
  return mul_f16x2((wide & 0x80008000u) | ((wide & 0x7f007f00u) >> 1), 0x5c005c00u);
#endif
}
// The same as bf16: exponent and mantissa at the place of a bf16's lower bits are the value times 2^-120.
template <int I, int J>
__device__ inline uint32_t bf16x2_from_e4m3_bytes(uint32_t x) {
  static_assert(I >= 0 && I < 4 && J >= 0 && J < 4);
  const uint32_t wide = prmt(x, 0u, 0x0404u | I << 4 | J << 12);
  return mul_bf16x2((wide & 0x80008000u) | ((wide & 0x7f007f00u) >> 4), 0x7b807b80u);
}
// e4m3 and halves. The conversion from e4m3 is exact; the other way saturates at +-448. NaN stays NaN.
__device__ inline uint32_t f16x2_from_e4m3x2(uint16_t x) {
  const uint32_t y = f16x2_from_e4m3_bytes<0, 1>(x);
#if __CUDA_ARCH__ >= 890
  return y;
#else
  const uint32_t low_nan = (x & 0x7fu) == 0x7fu ? 0x7fffu : 0u;
  const uint32_t high_nan = (x & 0x7f00u) == 0x7f00u ? 0x7fff0000u : 0u;
  return y | low_nan | high_nan;
#endif
}
__device__ inline float to_float(e4m3 x) {
  return to_float(f16{static_cast<uint16_t>(f16x2_from_e4m3x2(static_cast<uint16_t>(x.bits)))});
}
__device__ inline e4m3 to_e4m3(float x) {
#if __CUDA_ARCH__ >= 890
  uint16_t y;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(y) : "f"(0.0f), "f"(x));
  return {static_cast<uint8_t>(y)};
#else
  const uint32_t u = __float_as_uint(x);
  const uint8_t sign = static_cast<uint8_t>((u >> 24) & 0x80u);
  const uint32_t a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return {0x7f};
  if (a >= 0x43e00000u) return {static_cast<uint8_t>(sign | 0x7eu)};  // 448 and above
  if (a < 0x3c800000u) {  // below 2^-6: a multiple of 2^-9; adding 2^14 leaves it in the last bits, rounded to even
    return {static_cast<uint8_t>(sign | (__float_as_uint(__uint_as_float(a) + 16384.0f) & 0xfu))};
  }
  const uint32_t rounded = a + 0x7ffffu + ((a >> 20) & 1u);
  return {static_cast<uint8_t>(sign | ((rounded - 0x3c000000u) >> 20))};
#endif
}

__device__ inline int popc(uint32_t x) { return __popc(x); }
__device__ inline int ffs(uint32_t x) { return __ffs(static_cast<int>(x)); }  // 1 + lowest set bit, 0 for 0

// sin(pi x) and cos(pi x).
__device__ inline Vec<double, 2> sin_cos_pi(double x) {
  Vec<double, 2> y;
  ::sincospi(x, &y.v[0], &y.v[1]);
  return y;
}

// Approximations of the hardware: relative error about 2^-22, exact where IEEE has a special value.
__device__ inline float ex2(float x) {
  float y;
  asm("ex2.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ inline float rcp(float x) {
  float y;
  asm("rcp.approx.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace fl
