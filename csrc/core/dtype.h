// Element types, their sizes and names, and the scalar conversions that define bf16, f16 and e4m3.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "core/error.h"

namespace fastllm {

enum class DType : uint8_t { kF32, kBF16, kF16, kI32, kI64, kU8, kI8, kE4M3 };

constexpr int64_t size_of(DType t) {
  switch (t) {
    case DType::kF32:
      return 4;
    case DType::kBF16:
      return 2;
    case DType::kF16:
      return 2;
    case DType::kI32:
      return 4;
    case DType::kI64:
      return 8;
    case DType::kU8:
    case DType::kI8:
    case DType::kE4M3:
      return 1;
  }
  return 0;
}

constexpr const char* name_of(DType t) {
  switch (t) {
    case DType::kF32:
      return "float32";
    case DType::kBF16:
      return "bfloat16";
    case DType::kF16:
      return "float16";
    case DType::kI32:
      return "int32";
    case DType::kI64:
      return "int64";
    case DType::kU8:
      return "uint8";
    case DType::kI8:
      return "int8";
    case DType::kE4M3:
      return "fp8";
  }
  return "?";
}

// Parses "float32", "bfloat16", "float16"; throws kInvalidRequest naming what is known.
DType parse_float_dtype(std::string_view name);
// Those, "int8" and "fp8".
DType parse_kv_dtype(std::string_view name);

// Storage-only small types. Arithmetic is always done in float.
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};
// FP8: sign, 4 bits of exponent (bias 7), 3 of mantissa; subnormals, no infinity, S.1111.111 is NaN, largest 448.
struct e4m3 {
  uint8_t bits;
};

constexpr float to_float(float x) { return x; }
constexpr float to_float(bf16 x) { return std::bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }

// Round to nearest even; NaN stays NaN (quietened), so that a NaN in gives a NaN out.
constexpr bf16 to_bf16(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((u >> 16) | 0x40u)};
  return {static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16)};
}

constexpr float to_float(f16 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  const uint32_t exponent = (x.bits >> 10) & 0x1fu;
  const uint32_t mantissa = x.bits & 0x3ffu;
  if (exponent == 0) {  // zero and subnormals: mantissa * 2^-24, exact in float
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t e = exponent == 31 ? 255u : exponent + 112u;
  return std::bit_cast<float>(sign | (e << 23) | (mantissa << 13));
}

// Round to nearest even, overflow to infinity, subnormals kept; NaN stays NaN.
constexpr f16 to_f16(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  const auto sign = static_cast<uint16_t>((u >> 16) & 0x8000u);
  const uint32_t a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
  if (a >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // rounds to >= 65520
  if (a < 0x38800000u) {                                                 // below 2^-14: subnormal result
    // Adding 0.5 shifts the mantissa so that its last bit is 2^-24 and the addition itself rounds to even.
    const float shifted = std::bit_cast<float>(a) + 0.5f;
    return {static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(shifted) - 0x3f000000u))};
  }
  const uint32_t rounded = a + 0xfffu + ((a >> 13) & 1u);
  return {static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13))};
}

constexpr float to_float(e4m3 x) {
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x80u) << 24;
  const uint32_t magnitude = x.bits & 0x7fu;
  if (magnitude == 0x7f) return std::bit_cast<float>(sign | 0x7fc00000u);
  // Exponent and mantissa at the place of a float's are the value with another bias: times 2^120, subnormals included.
  return std::bit_cast<float>(sign | magnitude << 20) * 0x1p120f;
}

// Round to nearest even, +-448 beyond; NaN stays NaN.
constexpr e4m3 to_e4m3(float x) {
  const uint32_t u = std::bit_cast<uint32_t>(x);
  const auto sign = static_cast<uint8_t>((u >> 24) & 0x80u);
  const uint32_t a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return {0x7f};
  if (a >= 0x43e00000u) return {static_cast<uint8_t>(sign | 0x7eu)};  // 448 and above
  if (a < 0x3c800000u) {                                              // below 2^-6: subnormal result
    // 2^14 has its last bit at 2^-9, and the addition rounds to even.
    return {static_cast<uint8_t>(sign | (std::bit_cast<uint32_t>(std::bit_cast<float>(a) + 0x1p14f) & 0xfu))};
  }
  const uint32_t rounded = a + 0x7ffffu + ((a >> 20) & 1u);
  return {static_cast<uint8_t>(sign | ((rounded - 0x3c000000u) >> 20))};
}

// Calls f with a value-initialised tag of the C++ type of a float dtype.
template <class F>
decltype(auto) with_float_dtype(DType t, F&& f) {
  switch (t) {
    case DType::kF32:
      return f(float{});
    case DType::kBF16:
      return f(bf16{});
    case DType::kF16:
      return f(f16{});
    case DType::kI32:
    case DType::kI64:
    case DType::kU8:
    case DType::kI8:
    case DType::kE4M3:
      break;
  }
  fail(ErrorKind::kInternal, "with_float_dtype: ", name_of(t), " is not a float type");
}

template <class T>
T from_float(float x);
template <>
constexpr float from_float<float>(float x) {
  return x;
}
template <>
constexpr bf16 from_float<bf16>(float x) {
  return to_bf16(x);
}
template <>
constexpr f16 from_float<f16>(float x) {
  return to_f16(x);
}

}  // namespace fastllm
