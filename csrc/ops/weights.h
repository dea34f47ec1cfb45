// Weight matrices as the kernels see them. A packed weight is a description plus bytes whose layout belongs to the
// backend; every format, floats, integers in groups and fp8, goes through the same type.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "core/dtype.h"

namespace fastllm {

enum class WeightFormat : uint8_t { kF32, kBF16, kF16, kInt8, kInt4, kE4M3 };

constexpr bool is_integer(WeightFormat f) { return f == WeightFormat::kInt8 || f == WeightFormat::kInt4; }
// Made of codes with scales, not of plain floats.
constexpr bool has_codes(WeightFormat f) { return is_integer(f) || f == WeightFormat::kE4M3; }

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
    case DType::kE4M3:
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
    case WeightFormat::kE4M3:
      return "fp8";
  }
  return "?";
}

// How activations meet weights with codes. Part of the weight, so that it can never depend on the batch.
//
// kA8, kA8R and kA15 are for integer weights and kE4M3 for fp8; the others for both. The four quantize the activations
// of each row in groups: the weight's own, or 64 columns where a whole row shares one scale. Every step is one float32
// operation, rounded to nearest even; rne() rounds to an integer likewise. For the columns x of one row and group (at
// most `group` many: the last group may be shorter):
//   amax = max(max |x|, 2^-96)                 the floor keeps every quotient below finite and normal
//   kA8:   s = amax / 127,    a = rne(x * (127 / amax))
//   kA8R:  as kA8, and in groups with an outlier a second byte for what is left: r = rne(fma(-s, a, x) * (254 / s)),
//          s_r = s / 254. A group has an outlier if amax * count > 24 * sum |x|, summed in 16 lanes (column i of the
//          group in lane i % 16), then lanes 8, 4, 2, 1 apart.
//   kA15:  s = amax / 16256,  v = rne(x * (16256 / amax)) = 128 h + l with h = (v + 64) >> 7
//   kE4M3: s = amax / 448,    a = the e4m3 nearest to x * (448 / amax), ties to even, at most 448 either way
// A NaN or an infinity in a group makes its s NaN, and with it the results of the row.
//
// The result is one accumulator per output, from acc = 0 over ascending groups:
//   dot = sum over the group of (code - zero) * a                           exact (kA15: * v), then float(dot)
//   kE4M3:  dot = sum over the group of code * a                            in float32: products are exact, sums not
//   weights with groups:  acc = fma(float(dot) * s, scale, acc)             scale: of the output row and group
//   whole rows:           acc = fma(float(dot), s, acc)                     and in the end acc = acc * scale
//   with an outlier:      the same step again with r and s_r, at once after the first
//   y = acc, or acc + bias
// The order of kE4M3's sum within a group is the backend's (here: ascending columns), so its bits are those of one kind
// of chip; as everywhere, they depend on nothing but the row.
enum class ActMode : uint8_t {
  kA8,    // one signed byte per activation
  kA8R,   // and one for the remainder where an outlier makes the first one coarse
  kA15,   // two signed bytes: nearly lossless
  kBF16,  // activations rounded to bf16, float sums within a group
  kF32,   // activations as they are, float sums within a group
  kE4M3,  // activations in fp8, float sums within a group
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
    case ActMode::kE4M3:
      return "fp8";
  }
  return "?";
}

// The inverse of name_of; throw kInvalidRequest naming what is known.
WeightFormat parse_code_format(std::string_view name);
ActMode parse_act_mode(std::string_view name);

// W(N, K): output row n, input column k. X matrices of that shape for experts, stored expert by expert.
//
// Integer formats:  W[n, k] = (code[n, k] - zero[n, g]) * scale[n, g],  g = k / group.
// Codes are unsigned. Without zeros (`has_zeros` false: symmetric) zero is 8 for int4, 128 for int8.
// Modes kA8, kA8R and kA15 are exact integer sums within an activation group and one float multiply-add per group in
// ascending order: their bits are the same on every backend, ISA level, batch and thread count.
//
// fp8:  W[n, k] = code[n, k] * scale[n, g], codes e4m3 and not NaN, scales float32, no zeros; modes kBF16, kF32 and
// kE4M3. A backend may refuse it (kUnsupportedModel from packed_bytes).
struct WeightDesc {
  int64_t n = 0;
  int64_t k = 0;
  int64_t num_experts = 1;
  WeightFormat format = WeightFormat::kBF16;
  // Of formats with codes.
  int64_t group = 0;                // columns that share a scale: 32, 64, 128; 0: the whole row
  DType scale_dtype = DType::kF16;  // kF16 or kBF16 with groups; kF32 for whole rows and fp8
  bool has_zeros = false;           // zeros of 0..16 (int4) or 0..255 (int8), one per scale
  ActMode act = ActMode::kA8R;

  [[nodiscard]] int64_t groups() const { return group == 0 ? 1 : (k + group - 1) / group; }
  [[nodiscard]] int64_t act_group() const { return group == 0 ? 64 : group; }  // columns that are quantized together
  [[nodiscard]] int32_t symmetric_zero() const { return format == WeightFormat::kInt4 ? 8 : 128; }
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

// The same for a weight with codes: what it is made of. Scales must be exact in the weight's scale_dtype.
struct CodeSlice {
  const uint8_t* codes = nullptr;  // [num_rows, K], one code a byte
  const float* scales = nullptr;   // [num_rows, groups]
  const uint8_t* zeros = nullptr;  // [num_rows, groups], or nullptr without has_zeros
  int64_t row_begin = 0;
  int64_t num_rows = 0;
  int64_t expert = 0;
};

}  // namespace fastllm
