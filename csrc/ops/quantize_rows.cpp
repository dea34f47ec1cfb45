#include "ops/quantize_rows.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "core/error.h"

namespace fastllm {
namespace {

constexpr int kLanes = 16;
// Shares of the largest value that are still reached. 7/8 is where a symmetric 4-bit code -8 meets it.
constexpr std::array<float, 9> kRatios = {1.0f, 0.9375f, 0.875f, 0.8125f, 0.75f, 0.6875f, 0.625f, 0.5625f, 0.5f};
// Below this 1 / scale is not finite; such a group is zeros.
constexpr float kLeastScale = 1e-37f;

struct Range {
  float low = 0.0f;   // of 0 and all values
  float high = 0.0f;  // of 0 and all values
  bool is_finite = true;
};

// Codes are level + zero with levels in [lowest, highest].
struct Grid {
  float scale = 0.0f;
  float inverse = 0.0f;
  float zero = 0.0f;
  float highest_code = 0.0f;
};

// To the nearest integer, halves to even; exact for |x| < 2^22.
inline float nearest(float x) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: the sum has no bits below 1
  return (x + kMagic) - kMagic;
}

inline float code_of(float w, const Grid& grid) {
  const float code = nearest(w * grid.inverse) + grid.zero;
  const float above = code < 0.0f ? 0.0f : code;
  return above > grid.highest_code ? grid.highest_code : above;
}

float sum_of(const float* lanes) {
  float sums[kLanes];
  std::copy_n(lanes, kLanes, sums);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) sums[l] += sums[l + width];
  }
  return sums[0];
}

Range range_of(const float* w, int64_t count) {
  float low[kLanes] = {};
  float high[kLanes] = {};
  uint32_t largest[kLanes] = {};
  const auto take = [&](int64_t at, int lane) {
    const float x = w[at];
    low[lane] = x < low[lane] ? x : low[lane];
    high[lane] = x > high[lane] ? x : high[lane];
    const uint32_t magnitude = std::bit_cast<uint32_t>(x) & 0x7fffffffu;
    largest[lane] = magnitude > largest[lane] ? magnitude : largest[lane];
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) take(i + l, l);
  }
  for (int l = 0; i < count; ++i, ++l) take(i, l);
  return {*std::min_element(low, low + kLanes), *std::max_element(high, high + kLanes),
          *std::max_element(largest, largest + kLanes) < 0x7f800000u};
}

float squared_error(const float* w, int64_t count, const Grid& grid) {
  float sums[kLanes] = {};
  const auto take = [&](int64_t at, int lane) {
    const float error = w[at] - (code_of(w[at], grid) - grid.zero) * grid.scale;
    sums[lane] += error * error;
  };
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int l = 0; l < kLanes; ++l) take(i + l, l);
  }
  for (int l = 0; i < count; ++i, ++l) take(i, l);
  return sum_of(sums);
}

float round_to(DType dtype, float scale) {
  return with_float_dtype(dtype, [&]<class T>(T) { return to_float(from_float<T>(scale)); });
}

// The grid that reaches `ratio` of the range.
Grid grid_of(const QuantizeSpec& spec, const Range& range, float ratio) {
  const bool is_int4 = spec.format == WeightFormat::kInt4;
  Grid grid;
  grid.highest_code = is_int4 ? 15.0f : 255.0f;
  const float middle = is_int4 ? 8.0f : 128.0f;
  const float reach = spec.has_zeros ? (range.high - range.low) / grid.highest_code
                                     : std::max(range.high, -range.low) / (middle - 1.0f);
  grid.scale = round_to(spec.scale_dtype, reach * ratio);
  grid.zero = middle;
  if (!(grid.scale >= kLeastScale)) {
    grid.scale = 0.0f;
    return grid;
  }
  grid.inverse = 1.0f / grid.scale;
  if (spec.has_zeros) {
    grid.zero = std::clamp(nearest(-range.low * ratio * grid.inverse), 0.0f, grid.highest_code);
  }
  return grid;
}

Grid best_grid(const QuantizeSpec& spec, const float* w, int64_t count, const Range& range) {
  Grid best = grid_of(spec, range, kRatios[0]);
  if (!spec.clip_search || best.scale == 0.0f) return best;
  float least = squared_error(w, count, best);
  for (std::size_t i = 1; i < kRatios.size(); ++i) {
    const Grid grid = grid_of(spec, range, kRatios[i]);
    const float error = squared_error(w, count, grid);
    if (error < least) {
      least = error;
      best = grid;
    }
  }
  return best;
}

}  // namespace

void quantize_rows(const QuantizeSpec& spec, const float* values, int64_t rows, int64_t k, const QuantizedOut& out) {
  FASTLLM_CHECK(is_integer(spec.format) && (spec.group == 0 || k % spec.group == 0), "groups of ", spec.group,
                " in rows of ", k);
  const int64_t group = spec.group == 0 ? k : spec.group;
  const int64_t groups = k / group;
  for (int64_t at = 0; at < rows * groups; ++at) {
    const float* w = values + at * group;
    const Range range = range_of(w, group);
    const Grid grid = best_grid(spec, w, group, range);
    if (!range.is_finite || !std::isfinite(grid.scale)) {
      fail(ErrorKind::kCheckpoint,
           range.is_finite ? "a value is too large for a scale of type " : "a value is not finite",
           range.is_finite ? name_of(spec.scale_dtype) : "", ": the matrix cannot be quantized");
    }
    uint8_t* codes = out.codes + at * group;
    for (int64_t i = 0; i < group; ++i) codes[i] = static_cast<uint8_t>(static_cast<int32_t>(code_of(w[i], grid)));
    out.scales[at] = grid.scale;
    if (out.zeros != nullptr) out.zeros[at] = static_cast<uint8_t>(static_cast<int32_t>(grid.zero));
  }
}

}  // namespace fastllm
