// Quantized rows of a checkpoint -> float, and codes out of packed 32-bit words. One arithmetic for all formats:
//   value[r, k] = ((table[codes[r, k]] - zeros[r, g]) * scales[r, g] - offsets[r, g]) * factor
// with g = group_of[k], or k / group_size. Each operation rounds once to float, in this order; what a format does not
// have is left out (0 subtracted and 1 multiplied change no bit). A table makes one case of unsigned and signed
// integers, fp8, nf4 and fp4.
#pragma once

#include <cstdint>
#include <span>

namespace fastllm {

struct QuantizedRows {
  const uint8_t* codes = nullptr;  // [rows, cols]
  int64_t rows = 0;
  int64_t cols = 0;
  const float* table = nullptr;    // [256]
  const float* scales = nullptr;   // [rows, groups]
  const float* zeros = nullptr;    // [rows, groups] or null
  const float* offsets = nullptr;  // [rows, groups] or null
  int64_t groups = 0;
  int64_t group_size = 0;             // if group_of is null; the last group may be shorter
  const int32_t* group_of = nullptr;  // [cols] or null; every entry is in [0, groups)
  float factor = 1.0f;
};

// Throws kInternal if groups and columns disagree, kCheckpoint if an entry of group_of is out of range.
void dequantize(const QuantizedRows& from, float* out);

// Words of codes of 4 or 8 bits; code j of a word lies at bit positions[j] * bits.
struct PackedWords {
  const uint32_t* data = nullptr;  // [rows, cols], word (i, j) at i * row_stride + j * col_stride
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_stride = 0;
  int64_t col_stride = 1;
  int bits = 4;
  bool packs_rows = false;             // a word holds codes of consecutive rows, else of consecutive columns
  std::span<const uint8_t> positions;  // 32 / bits of them
};

// The matrix of codes, or its transpose, as bytes in rows of out_cols (the codes beyond the last row or column, which
// fill up a word, are left out).
void unpack_codes(const PackedWords& from, bool transpose, uint8_t* out, int64_t out_rows, int64_t out_cols);

}  // namespace fastllm
