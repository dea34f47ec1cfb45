// Activations to codes, group by group, as ActMode of ops/weights.h defines it:
//       s = amax / L,  a = rne(x * (L / amax)),  L = 127 (a8, a8r) or 16256 (a15);  a8r: remainders where one is large
//       fp8:  L = 448, and a is the nearest e4m3
//
// One warp per (row, group); a lane has columns lane, lane + 32, ... of the group. The one float sum (of |x|, for a8r)
// is in the order of the definition: 16 lanes ascending, then 8, 4, 2, 1 apart; so bits are those of every backend.
// Bytes: 4 read, 1 or 2 written per activation, 16 per group.
// Defined by reference/int_linear.cpp; tested in tests/ops/test_int_weights.py and test_fp8_weights.py.
#include <cmath>

#include "core/checked.h"
#include "cuda/fl/gpu.h"
#include "cuda/gemm/act_codes.h"

namespace fastllm::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;
constexpr int kMaxPerLane = 4;  // groups have up to 128 columns

struct QuantizeArgs {
  const float* x;
  int64_t x_stride;
  int64_t num_rows;
  int64_t k;
  int64_t padded_k;
  uint8_t* codes;
  ActGroup* groups;
  int32_t group;
  ActMode mode;
};

__device__ inline int32_t sum_over_warp(int32_t x) { return fl::reduce_add(fl::kFullMask, x); }

// amax * count > 24 sum |x|: one number so large that the others keep few bits.
__device__ inline bool has_outlier(const float* x, int32_t count, float amax) {
  float sum = 0.0f;
  for (auto i = static_cast<int32_t>(fl::lane_id() % 16); i < count; i += 16) sum += fabsf(x[i]);
  for (int width = 8; width > 0; width /= 2) sum += fl::shfl_xor(fl::kFullMask, sum, width);
  return amax * static_cast<float>(count) > 24.0f * sum;
}

// registers: 56
__global__ void __launch_bounds__(kThreads) quantize_rows_kernel(QuantizeArgs a) {
  const int64_t padded_groups = (a.padded_k + a.group - 1) / a.group;
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * kWarps + fl::warp_id();
  if (unit >= a.num_rows * padded_groups) return;  // a whole warp
  const int64_t row = unit / padded_groups;
  const int64_t group = unit % padded_groups;
  const int64_t first = group * a.group;
  const auto lane = static_cast<int32_t>(fl::lane_id());
  const auto left = [&](int64_t end) {  // columns of the group before `end`
    const int64_t n = end - first;
    return static_cast<int32_t>(n < 0 ? 0 : n < a.group ? n : a.group);
  };
  const int32_t count = left(a.k);
  const int32_t padded_count = left(a.padded_k);
  const float* x = a.x + row * a.x_stride + first;

  float amax = 0x1p-96f;
  bool is_finite = true;
  for (int32_t i = lane; i < count; i += 32) {
    amax = fmaxf(amax, fabsf(x[i]));
    is_finite = is_finite && fabsf(x[i]) < INFINITY;
  }
  for (int width = 16; width > 0; width /= 2) amax = fmaxf(amax, fl::shfl_xor(fl::kFullMask, amax, width));
  is_finite = fl::all(fl::kFullMask, is_finite);

  const bool is_wide = a.mode == ActMode::kA15;
  const bool is_e4m3 = a.mode == ActMode::kE4M3;
  const float largest = is_wide ? 16256.0f : is_e4m3 ? 448.0f : 127.0f;
  ActGroup out{};
  out.scale = is_finite ? amax / largest : NAN;
  const float inverse = largest / amax;
  const bool has_remainders = a.mode == ActMode::kA8R && is_finite && has_outlier(x, count, amax);
  if (has_remainders) out.remainder_scale = out.scale / 254.0f;
  const float remainder_inverse = 254.0f / out.scale;

  const int planes = a.mode == ActMode::kA8 || is_e4m3 ? 1 : 2;
  uint8_t* codes = a.codes + row * planes * a.padded_k;
#pragma unroll
  for (int j = 0; j < kMaxPerLane; ++j) {
    const int32_t i = lane + 32 * j;
    if (i >= padded_count) break;
    const float value = i < count && is_finite ? x[i] : 0.0f;
    const int64_t at = act_position(first + i);
    if (is_e4m3) {
      codes[at] = fl::to_e4m3(value * inverse).bits;
      continue;
    }
    const auto code = static_cast<int32_t>(rintf(value * inverse));
    int32_t high = code;
    int32_t low = 0;
    if (is_wide) {
      high = (code + 64) >> 7;
      low = code - 128 * high;
    } else if (has_remainders) {
      low = static_cast<int32_t>(rintf(fmaf(-out.scale, static_cast<float>(code), value) * remainder_inverse));
      out.remainder_sum += low;
    }
    out.sum += code;
    codes[at] = static_cast<uint8_t>(high);
    if (planes == 2) codes[a.padded_k + at] = static_cast<uint8_t>(low);
  }
  out.sum = sum_over_warp(out.sum);
  out.remainder_sum = sum_over_warp(out.remainder_sum);
  const int64_t num_groups = (a.k + a.group - 1) / a.group;
  if (lane == 0 && group < num_groups) a.groups[row * num_groups + group] = out;
}

}  // namespace

void quantize_rows(fl::Stream& stream, const float* x, int64_t x_stride, int64_t num_rows, int64_t k, ActMode mode,
                   int64_t group, uint8_t* codes, int64_t padded_k, ActGroup* groups) {
  if (num_rows == 0) return;
  FASTLLM_CHECK(group <= 32 * kMaxPerLane, "quantize_rows: groups of ", group, " columns");
  const QuantizeArgs args{x, x_stride, num_rows, k, padded_k, codes, groups, narrow<int32_t>(group), mode};
  const int64_t blocks = ceil_div(num_rows * ceil_div(padded_k, group), kWarps);
  FASTLLM_CHECK(blocks <= INT32_MAX, "quantize_rows: ", num_rows, " rows x ", k, " are more than a grid holds");
  fl::launch(stream, {"quantize_rows", {static_cast<uint32_t>(blocks)}, kThreads, 0}, quantize_rows_kernel, args);
}

}  // namespace fastllm::cuda
