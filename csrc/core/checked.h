// Arithmetic on sizes that come from outside: every product, sum and narrowing throws instead of wrapping.
#pragma once

#include <concepts>
#include <cstdint>
#include <utility>

#include "core/error.h"

namespace fastllm {

template <std::integral To, std::integral From>
To narrow(From x, const char* what = "a size") {
  if (!std::in_range<To>(x)) fail(ErrorKind::kInvalidRequest, what, " = ", x, " is out of range");
  return static_cast<To>(x);
}

inline int64_t checked_mul(int64_t a, int64_t b, const char* what = "a size") {
  int64_t out = 0;
  if (__builtin_mul_overflow(a, b, &out)) fail(ErrorKind::kInvalidRequest, what, ": ", a, " * ", b, " overflows");
  return out;
}

inline int64_t checked_add(int64_t a, int64_t b, const char* what = "a size") {
  int64_t out = 0;
  if (__builtin_add_overflow(a, b, &out)) fail(ErrorKind::kInvalidRequest, what, ": ", a, " + ", b, " overflows");
  return out;
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

}  // namespace fastllm
