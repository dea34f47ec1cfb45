// DLPack arrays (NumPy, torch) as the views that operations take. Only what Python can get wrong is checked here:
// element type, number of dimensions, layout, and that what is read here lies with the host. Sizes that belong together
// are checked in ops/check.h, devices that do in call_arrays.h.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <type_traits>
#include <utility>
#include <vector>

#include "ops/ops.h"

namespace fastllm {

using InArray = nanobind::ndarray<nanobind::ro>;
using OutArray = nanobind::ndarray<>;

template <class Array>
void expect_on_host(const Array& a, const char* name) {
  if (a.device_type() == nanobind::device::cpu::value) return;
  fail(ErrorKind::kInvalidRequest, name, " is on a device, and is read by the host; copy it there first");
}

template <class Array>
DType dtype_of(const Array& a, const char* name) {
  const nanobind::dlpack::dtype t = a.dtype();
  if (t.lanes == 1) {
    for (const DType known : {DType::kF32, DType::kBF16, DType::kF16, DType::kI32, DType::kI64, DType::kU8}) {
      using Code = nanobind::dlpack::dtype_code;
      const Code code = known == DType::kBF16                          ? Code::Bfloat
                        : known == DType::kF32 || known == DType::kF16 ? Code::Float
                        : known == DType::kU8                          ? Code::UInt
                                                                       : Code::Int;
      if (t.code == static_cast<uint8_t>(code) && t.bits == 8 * size_of(known)) return known;
    }
  }
  fail(ErrorKind::kInvalidRequest, name, " has an element type that is not supported; use float32, bfloat16, float16, ",
       "int32 or int64");
}

// [rows, cols], or [rows, heads, dim] seen as [rows, heads * dim]. Rows may lie apart; inside a row all is contiguous.
template <class Array>
Mat as_mat(const Array& a, const char* name) {
  if (a.ndim() != 2 && a.ndim() != 3) {
    fail(ErrorKind::kInvalidRequest, name, " has ", a.ndim(), " dimensions, expected 2 (or 3 with heads)");
  }
  int64_t cols = 1;
  for (std::size_t i = a.ndim() - 1; i >= 1; --i) {
    if (a.size() > 0 && a.shape(i) > 1 && a.stride(i) != cols) {  // strides of an empty array say nothing
      fail(ErrorKind::kInvalidRequest, name, " is not contiguous within a row (dimension ", i, " has stride ",
           a.stride(i), ", expected ", cols, ")");
    }
    cols *= static_cast<int64_t>(a.shape(i));
  }
  const auto rows = static_cast<int64_t>(a.shape(0));
  const int64_t stride = rows > 1 && a.size() > 0 ? a.stride(0) : cols;
  return {const_cast<void*>(static_cast<const void*>(a.data())), dtype_of(a, name), rows, cols, stride};
}

template <class Array>
Mat as_mat(const std::optional<Array>& a, const char* name) {
  return a.has_value() ? as_mat(*a, name) : Mat{};
}

// Contiguous, of `dtype`, with exactly `count` elements, of any shape.
template <class Array>
void expect_contiguous(const Array& a, const char* name, DType dtype, int64_t count) {
  if (dtype_of(a, name) != dtype) {
    fail(ErrorKind::kInvalidRequest, name, " is ", name_of(dtype_of(a, name)), ", expected ", name_of(dtype));
  }
  int64_t size = 1;
  for (std::size_t i = a.ndim(); i-- > 0;) {
    if (a.size() > 0 && a.shape(i) > 1 && a.stride(i) != size)
      fail(ErrorKind::kInvalidRequest, name, " is not contiguous");
    size *= static_cast<int64_t>(a.shape(i));
  }
  if (size != count) fail(ErrorKind::kInvalidRequest, name, " has ", size, " elements, expected ", count);
}

template <class Array>
auto* as_floats(const Array& a, const char* name, int64_t count) {
  expect_contiguous(a, name, DType::kF32, count);
  return static_cast<std::conditional_t<std::is_same_v<Array, InArray>, const float*, float*>>(a.data());
}

inline const uint8_t* as_bytes(const InArray& a, const char* name, int64_t count) {
  expect_on_host(a, name);
  expect_contiguous(a, name, DType::kU8, count);
  return static_cast<const uint8_t*>(a.data());
}

inline const float* as_floats(const std::optional<InArray>& a, const char* name, int64_t count) {
  return a.has_value() ? as_floats(*a, name, count) : nullptr;
}

// Integers of one or two dimensions as a vector of Int; int32 and int64 come in, and every value must fit.
template <class Int>
std::vector<Int> as_integers(const InArray& a, const char* name) {
  expect_on_host(a, name);
  const DType t = dtype_of(a, name);
  if ((t != DType::kI32 && t != DType::kI64) || a.ndim() < 1 || a.ndim() > 2) {
    fail(ErrorKind::kInvalidRequest, name, " is ", name_of(t), " with ", a.ndim(),
         " dimensions, expected int32 or int64 with 1 or 2");
  }
  const std::size_t cols = a.ndim() == 2 ? a.shape(1) : 1;
  std::vector<Int> out;
  out.reserve(a.shape(0) * cols);
  for (std::size_t i = 0; i < a.shape(0); ++i) {
    for (std::size_t j = 0; j < cols; ++j) {
      const int64_t at =
          static_cast<int64_t>(i) * a.stride(0) + (a.ndim() == 2 ? static_cast<int64_t>(j) * a.stride(1) : 0);
      const int64_t x =
          t == DType::kI32 ? static_cast<const int32_t*>(a.data())[at] : static_cast<const int64_t*>(a.data())[at];
      if (!std::in_range<Int>(x)) fail(ErrorKind::kInvalidRequest, name, " holds ", x, ", which is out of range");
      out.push_back(static_cast<Int>(x));
    }
  }
  return out;
}

}  // namespace fastllm
