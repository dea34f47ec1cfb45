// Round to nearest: float rows -> the codes, scales and zeros of an integer weight (ops/weights.h).
//
// A group takes the scale with which its codes are nearest to it in mean square, out of nine: the one that reaches its
// largest value, and eight that clip ever more of it. Symmetric:  code = rne(w / scale) + 8 (or 128);
// else  zero = rne(-min / scale),  code = rne(w / scale) + zero,  where [min, max] takes in 0. Scales are rounded to
// scale_dtype before they are used. Sums are taken in 16 lanes and one fixed order: a row's result depends on it alone.
// For what `fastllm quantize` writes there is another search (python/fastllm/quantize/grid.py says why).
#pragma once

#include <cstdint>

#include "ops/weights.h"

namespace fastllm {

struct QuantizeSpec {
  WeightFormat format = WeightFormat::kInt4;  // kInt4 or kInt8
  int64_t group = 0;                          // columns that share a scale, 0: the whole row
  DType scale_dtype = DType::kF16;
  bool has_zeros = false;
  bool clip_search = true;  // false: only the scale that reaches the largest value
};

// What quantize_rows() writes, row by row; the shapes of CodeSlice.
struct QuantizedOut {
  uint8_t* codes = nullptr;  // [rows, k]
  float* scales = nullptr;   // [rows, groups]
  uint8_t* zeros = nullptr;  // [rows, groups], or nullptr without has_zeros
};

// values [rows, k], contiguous; the group divides k. Throws kCheckpoint when a value is not finite, or so large that
// scale_dtype has no scale for it.
void quantize_rows(const QuantizeSpec& spec, const float* values, int64_t rows, int64_t k, const QuantizedOut& out);

}  // namespace fastllm
