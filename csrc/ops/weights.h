// Weight matrices as the kernels see them. A packed weight is a description plus bytes whose layout belongs to the
// backend; every format (float now, integer groups and fp8 as further formats) goes through the same type.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace fastllm {

enum class WeightFormat : uint8_t { kF32, kBF16, kF16, kInt8, kInt4 };

constexpr bool is_integer(WeightFormat f) { return f == WeightFormat::kInt8 || f == WeightFormat::kInt4; }

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
    case DType::kI8:
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
    case WeightFormat::kInt8:
      return "int8";
    case WeightFormat::kInt4:
      return "int4";
  }
  return "?";
}

// How activations meet integer weights. Part of the weight, so that it can never depend on the batch. Activations are
// quantized per row and per activation group: the weight's group, or 64 columns where a whole row shares one scale.
enum class ActMode : uint8_t {
  kA8,    // one signed byte per activation: a = rne(x * 127 / amax), scale amax / 127
  kA8R,   // kA8, and a second byte for the remainder in groups with an outlier: amax > 24 * mean |x|
  kA15,   // two signed bytes: nearly lossless
  kBF16,  // activations rounded to bf16, float sums within a group
  kF32,   // activations as they are, float sums within a group
};

constexpr const char* name_of(ActMode m) {
  switch (m) {
    case ActMode::kA8:
      return "a8";
    case ActMode::kA8R:
      return "a8r";
    case ActMode::kA15:
      return "a15";
    case ActMode::kBF16:
      return "bf16";
    case ActMode::kF32:
      return "f32";
  }
  return "?";
}

// W(N, K): output row n, input column k. X matrices of that shape for experts, stored expert by expert.
//
// Integer formats:  W[n, k] = (code[n, k] - zero[n, g]) * scale[n, g],  g = k / group.
// Codes are unsigned. Without zeros (`has_zeros` false: symmetric) zero is 8 for int4, 128 for int8.
// Modes kA8, kA8R and kA15 are exact integer sums within an activation group and one float multiply-add per group in
// ascending order: their bits are the same on every backend of the host, ISA level, batch and thread count.
struct WeightDesc {
  int64_t n = 0;
  int64_t k = 0;
  int64_t num_experts = 1;
  WeightFormat format = WeightFormat::kBF16;
  // Of integer formats.
  int64_t group = 0;                // columns that share a scale: 32, 64, 128; 0: the whole row
  DType scale_dtype = DType::kF16;  // kF16 or kBF16 with groups; kF32 for whole rows
  bool has_zeros = false;           // zeros of 0..16 (int4) or 0..255 (int8), one per scale
  ActMode act = ActMode::kA8R;

  [[nodiscard]] int64_t groups() const { return group == 0 ? 1 : (k + group - 1) / group; }
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

// The same for an integer weight: what it is made of. Scales must be exact in the weight's scale_dtype.
struct CodeSlice {
  const uint8_t* codes = nullptr;  // [num_rows, K], one code a byte
  const float* scales = nullptr;   // [num_rows, groups]
  const uint8_t* zeros = nullptr;  // [num_rows, groups], or nullptr without has_zeros
  int64_t row_begin = 0;
  int64_t num_rows = 0;
  int64_t expert = 0;
};

}  // namespace fastllm
