// Weight matrices as the kernels see them. A packed weight is a description plus bytes whose layout belongs to the
// backend; every format (float now, integer groups and fp8 as further formats) goes through the same type.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace fastllm {

enum class WeightFormat : uint8_t { kF32, kBF16, kF16 };

constexpr WeightFormat format_of(DType t) {
  switch (t) {
    case DType::kF32:
      return WeightFormat::kF32;
    case DType::kBF16:
      return WeightFormat::kBF16;
    case DType::kF16:
      return WeightFormat::kF16;
    case DType::kI32:
    case DType::kI64:
    case DType::kU8:
      break;
  }
  fail(ErrorKind::kInternal, "no weight format for ", name_of(t));
}

constexpr const char* name_of(WeightFormat f) {
  switch (f) {
    case WeightFormat::kF32:
      return "f32";
    case WeightFormat::kBF16:
      return "bf16";
    case WeightFormat::kF16:
      return "f16";
  }
  return "?";
}

// W(N, K): output row n, input column k. X matrices of that shape for experts, stored expert by expert.
struct WeightDesc {
  int64_t n = 0;
  int64_t k = 0;
  int64_t num_experts = 1;
  WeightFormat format = WeightFormat::kBF16;
};

struct PackedWeight {
  WeightDesc desc;
  std::byte* data = nullptr;  // Backend::packed_bytes(desc) bytes, 64-byte aligned, zero before the first pack()
};

// Rows [row_begin, row_begin + num_rows) of one expert, read from a (possibly transposed or interleaved) source.
// Element (i, k) of the slice is at data + (i * row_stride + k * col_stride) elements of dtype.
// Slices of one weight may be packed concurrently if their rows are disjoint.
struct WeightSlice {
  const void* data = nullptr;
  DType dtype = DType::kBF16;
  int64_t row_stride = 0;
  int64_t col_stride = 1;
  int64_t row_begin = 0;
  int64_t num_rows = 0;
  int64_t expert = 0;
};

}  // namespace fastllm
