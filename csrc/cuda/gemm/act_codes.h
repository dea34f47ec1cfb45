// Activations as codes: what the modes a8, a8r, a15 and fp8 of ops/weights.h make of a row.
#pragma once

#include "cuda/fl/host.h"
#include "cuda/gemm/weight_tiles.h"

namespace fastllm::cuda {

constexpr bool has_act_codes(ActMode mode) {
  return mode == ActMode::kA8 || mode == ActMode::kA8R || mode == ActMode::kA15 || mode == ActMode::kE4M3;
}
// Bytes per activation, signed or e4m3. a8r: code, remainder. a15: v = 128 high + low.
constexpr int act_planes(ActMode mode) { return mode == ActMode::kA8 || mode == ActMode::kE4M3 ? 1 : 2; }

// One group of a row. Sums are what the zero of an integer weight is multiplied by; 0 of fp8.
struct alignas(16) ActGroup {
  float scale;
  float remainder_scale;  // 0: nothing remains, or the mode has no remainders
  int32_t sum;            // of the codes (a15: of v)
  int32_t remainder_sum;
};

// Columns go 16 at a time, in the order in which the tiles of a weight hold them (weight_tiles.h): the four bytes that
// a lane multiplies with columns 2t, 2t + 1, 2t + 8, 2t + 9 lie together at 4t.
FASTLLM_HOST_DEVICE constexpr int64_t act_position(int64_t col) {
  return col / 16 * 16 + col % 8 / 2 * 4 + col % 16 / 8 * 2 + col % 2;
}

// codes [num_rows][planes][padded_k], groups [num_rows][ceil(k / group)]. Columns from k to padded_k become 0.
void quantize_rows(fl::Stream& stream, const float* x, int64_t x_stride, int64_t num_rows, int64_t k, ActMode mode,
                   int64_t group, uint8_t* codes, int64_t padded_k, ActGroup* groups);

}  // namespace fastllm::cuda
