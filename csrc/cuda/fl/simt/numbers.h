#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "core/dtype.h"
#include "cuda/fl/types.h"

namespace fl {

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) { return fastllm::to_float(fastllm::bf16{x.bits}); }
inline float to_float(f16 x) { return fastllm::to_float(fastllm::f16{x.bits}); }
inline bf16 to_bf16(float x) {
  const uint16_t bits = fastllm::to_bf16(x).bits;
  return {(bits & 0x7fffu) > 0x7f80u ? uint16_t{0x7fff} : bits};  // the hardware's one NaN
}
inline f16 to_f16(float x) {
  const uint16_t bits = fastllm::to_f16(x).bits;
  return {(bits & 0x7fffu) > 0x7c00u ? uint16_t{0x7fff} : bits};
}
template <class T>
inline T from_float(float x) {
  if constexpr (std::is_same_v<T, bf16>) {
    return to_bf16(x);
  } else if constexpr (std::is_same_v<T, f16>) {
    return to_f16(x);
  } else {
    return x;
  }
}

namespace simt {

inline uint32_t pair(uint16_t low, uint16_t high) { return low | (static_cast<uint32_t>(high) << 16); }
inline uint16_t half_of(uint32_t x, int i) { return static_cast<uint16_t>(x >> (16 * i)); }

// The sum, with the last bit set when it is not exact: rounding that to fewer bits gives what rounding the exact sum
// would have given.
inline double add_to_odd(double a, double b) {
  const double sum = a + b;
  if (!std::isfinite(sum)) return sum;
  const double b_part = sum - a;
  const double error = (a - (sum - b_part)) + (b - b_part);
  const auto bits = std::bit_cast<uint64_t>(sum);
  if (error == 0.0 || (bits & 1u) != 0) return sum;
  const bool away = (error > 0.0) == (sum > 0.0);
  return std::bit_cast<double>(away ? bits + 1 : bits - 1);
}
// To float, towards zero with the last bit set when it is not exact; then to_bf16 or to_f16 round once in effect.
inline float to_float_odd(double x) {
  const auto y = static_cast<float>(x);
  if (!std::isfinite(x)) return y;
  const auto bits = std::bit_cast<uint32_t>(y);
  if (static_cast<double>(y) == x || (bits & 1u) != 0) return y;
  if (std::isinf(y)) return y;
  const bool is_above = std::fabs(static_cast<double>(y)) > std::fabs(x);
  return std::bit_cast<float>(is_above ? bits - 1 : bits + 1);
}
template <class Half>
uint32_t fma_x2(uint32_t a, uint32_t b, uint32_t c) {
  std::array<uint16_t, 2> y{};
  for (int i = 0; i < 2; ++i) {
    const double product =  // exact: 11 + 11 bits
        static_cast<double>(to_float(Half{half_of(a, i)})) * static_cast<double>(to_float(Half{half_of(b, i)}));
    const double sum = add_to_odd(product, static_cast<double>(to_float(Half{half_of(c, i)})));
    y[static_cast<std::size_t>(i)] = from_float<Half>(to_float_odd(sum)).bits;
  }
  return pair(y[0], y[1]);
}

}  // namespace simt

inline uint32_t pack_bf16x2(float low, float high) { return simt::pair(to_bf16(low).bits, to_bf16(high).bits); }
inline uint32_t pack_f16x2(float low, float high) { return simt::pair(to_f16(low).bits, to_f16(high).bits); }
inline Vec<float, 2> unpack_bf16x2(uint32_t x) {
  return {{to_float(bf16{simt::half_of(x, 0)}), to_float(bf16{simt::half_of(x, 1)})}};
}
inline Vec<float, 2> unpack_f16x2(uint32_t x) {
  return {{to_float(f16{simt::half_of(x, 0)}), to_float(f16{simt::half_of(x, 1)})}};
}

inline uint32_t sub_f16x2(uint32_t a, uint32_t b) { return simt::fma_x2<f16>(b, 0xbc00bc00u, a); }
inline uint32_t mul_f16x2(uint32_t a, uint32_t b) { return simt::fma_x2<f16>(a, b, 0x80008000u); }
inline uint32_t fma_bf16x2(uint32_t a, uint32_t b, uint32_t c) { return simt::fma_x2<bf16>(a, b, c); }
inline uint32_t sub_bf16x2(uint32_t a, uint32_t b) { return simt::fma_x2<bf16>(b, 0xbf80bf80u, a); }
inline uint32_t mul_bf16x2(uint32_t a, uint32_t b) { return simt::fma_x2<bf16>(a, b, 0x80008000u); }

inline float to_float(e4m3 x) { return fastllm::to_float(fastllm::e4m3{x.bits}); }
inline e4m3 to_e4m3(float x) { return {fastllm::to_e4m3(x).bits}; }
inline uint32_t f16x2_from_e4m3x2(uint16_t x) {
  return pack_f16x2(to_float(e4m3{static_cast<uint8_t>(x)}), to_float(e4m3{static_cast<uint8_t>(x >> 8)}));
}
template <int I, int J>
uint32_t f16x2_from_e4m3_bytes(uint32_t x) {
  static_assert(I >= 0 && I < 4 && J >= 0 && J < 4);
  return pack_f16x2(to_float(e4m3{static_cast<uint8_t>(x >> (8 * I))}),
                    to_float(e4m3{static_cast<uint8_t>(x >> (8 * J))}));
}

template <int I, int J>
uint32_t bf16x2_from_e4m3_bytes(uint32_t x) {
  static_assert(I >= 0 && I < 4 && J >= 0 && J < 4);
  return pack_bf16x2(to_float(e4m3{static_cast<uint8_t>(x >> (8 * I))}),
                     to_float(e4m3{static_cast<uint8_t>(x >> (8 * J))}));
}

inline uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = a | (static_cast<uint64_t>(b) << 32);
  uint32_t y = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t which = (selector >> (4 * i)) & 15u;
    auto byte = static_cast<uint32_t>((bytes >> (8 * (which & 7u))) & 0xffu);
    if ((which & 8u) != 0) byte = (byte & 0x80u) != 0 ? 0xffu : 0u;
    y |= byte << (8 * i);
  }
  return y;
}
inline int popc(uint32_t x) { return std::popcount(x); }
inline int ffs(uint32_t x) { return x == 0 ? 0 : 1 + std::countr_zero(x); }

inline Vec<double, 2> sin_cos_pi(double x) {
  const double angle = (x - 2.0 * std::rint(x / 2.0)) * 3.14159265358979323846;
  return {{std::sin(angle), std::cos(angle)}};
}

// Rounded correctly, where the hardware has an error of some units in the last place.
inline float ex2(float x) { return static_cast<float>(std::exp2(static_cast<double>(x))); }
inline float rcp(float x) { return static_cast<float>(1.0 / static_cast<double>(x)); }

}  // namespace fl
