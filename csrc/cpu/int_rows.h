// Activations as signed bytes (definition: ActMode in ops/weights.h), in the layout of linear_int_kernels.cpp.
//
// A tile of rows has for each group, ascending, the first plane [quad][row][4] and then a GroupOfRow for each row; the
// second planes of all groups follow.
#pragma once

#include "cpu/int_dot.h"
#include "cpu/linear_tile.h"

namespace fastllm::cpu::FASTLLM_ISA {

// What comes with one plane of one row and group; [1] is for half panels of high nibbles.
struct PlaneOfRow {
  float scale[2];
  int32_t start[2];  // of the sums: -zero * sum(a), or -sum(a) where scales have zeros of their own
};
// The second plane is the low byte (kTwo, which has the scale of the first) or the remainder (kResidual; scale 0:
// none).
struct GroupOfRow {
  PlaneOfRow plane[2];
  int32_t tile_has_residual;  // of any row of the tile; set in the first row
};

FASTLLM_INLINE int64_t num_groups_of(int64_t k, const IntFormat& f) { return (k + f.group - 1) / f.group; }
FASTLLM_INLINE int64_t first_plane_bytes(const IntFormat& f) {  // of one group of one row, with what comes with it
  return f.group + static_cast<int64_t>(sizeof(GroupOfRow));
}
inline int64_t int_row_bytes(int64_t k, const IntFormat& f) {
  return num_groups_of(k, f) * (first_plane_bytes(f) + (f.planes == Planes::kOne ? 0 : f.group));
}

// Rounds to the nearest integer, ties to even, for |x| < 2^22.
FASTLLM_INLINE Vec round_to_int(Vec x) {
  const Vec magic = set1(12582912.0f);  // 1.5 * 2^23
  return sub(add(x, magic), magic);
}

// One row and group of activations, in 16 lanes at a time. kIsWhole: as many as a group has.
template <bool kIsWhole>
struct RowGroupSource {
  const float* x;
  int64_t count;  // <= group; the rest counts as 0
  [[nodiscard]] FASTLLM_INLINE Vec load(int64_t i) const {
    if constexpr (kIsWhole) return fastllm::cpu::FASTLLM_ISA::load(x + i);
    return load_n(x + i, count - i);
  }
};

struct Quantizer {
  float scale;
  float inverse;  // 0 where a number is not finite: its codes are 0 and its scale is NaN
  bool has_outlier;
};

template <bool kIsWhole>
FASTLLM_INLINE Quantizer measure(const RowGroupSource<kIsWhole>& row, const IntFormat& f) {
  Vec top = zero(), sum = zero(), poison = zero();
  for (int64_t i = 0; i < f.group; i += kLanes) {
    const Vec v = row.load(i);
    const Vec magnitude = max(sub(zero(), v), v);
    top = max(magnitude, top);
    sum = add(sum, magnitude);
    poison = fma(v, zero(), poison);  // 0 * infinity is NaN
  }
  if (!(reduce_add(poison) == 0.0f)) return {__builtin_nanf(""), 0.0f, false};
  const float largest = f.planes == Planes::kTwo ? 16256.0f : 127.0f;
  const float top_of_all = reduce_max(top);
  const float amax = top_of_all > 0x1p-96f ? top_of_all : 0x1p-96f;
  const bool has_outlier =
      f.planes == Planes::kResidual && amax * static_cast<float>(row.count) > 24.0f * reduce_add(sum);
  return {amax / largest, largest / amax, has_outlier};
}

// Writes codes of 16 columns at a time to their quads and sums them up.
class PlaneWriter {
 public:
  FASTLLM_INLINE PlaneWriter(std::byte* first_quad, int64_t rows) : to_(first_quad), stride_(4 * rows) {}
  FASTLLM_INLINE void put(Vec codes) {
    int8_t bytes[16];
    store_bytes(bytes, codes);
    for (int i = 0; i < 4; ++i, to_ += stride_) __builtin_memcpy(to_, bytes + 4 * i, 4);
    sum_ = add(sum_, codes);
  }
  template <class Codes>
  FASTLLM_INLINE PlaneOfRow finish(float scale, const IntFormat& f) const {
    const auto sum = static_cast<int32_t>(reduce_add(sum_));
    const int32_t factor = f.zero == 0 ? 1 : f.zero - Codes::kOffset;
    const int32_t high = f.zero == 0 ? 1 : Codes::kHighFactor;
    return {{scale, scale / static_cast<float>(Codes::kHighFactor)}, {-sum * factor, -sum * factor * high}};
  }

 private:
  std::byte* to_;
  int64_t stride_;
  Vec sum_ = zero();
};

// One group of a tile.
template <class Codes, int kRowTile, bool kIsWhole>
FASTLLM_INLINE void pack_group(const PackRowsJob& job, const Tile& tile, int64_t g, std::byte* first,
                               std::byte* second) {
  const IntFormat& f = job.format;
  const int64_t k = g * f.group - job.k_begin;
  const int64_t count = job.k_end - job.k_begin - k < f.group ? job.k_end - job.k_begin - k : f.group;
  const auto source = [&](int64_t m) __attribute__((always_inline)) {
    return RowGroupSource<kIsWhole>{row_of(job, tile.begin + m) + k, count};
  };
  auto* groups = reinterpret_cast<GroupOfRow*>(first + tile.rows * f.group);
  int32_t tile_has_residual = 0;
  // All rows are measured before one is written: what is waited for in one overlaps with the next.
  Quantizer quantizers[kRowTile];
  for (int64_t m = 0; m < tile.rows; ++m) quantizers[m] = measure(source(m), f);
  for (int64_t m = 0; m < tile.rows; ++m) {
    const RowGroupSource<kIsWhole> row = source(m);
    const Quantizer q = quantizers[m];
    // A group with a number that is not finite has codes of 0.
    const Vec inverse = set1(q.inverse);
    PlaneWriter plane(first + 4 * m, tile.rows);
    PlaneWriter low_plane(second + 4 * m, tile.rows);
    for (int64_t i = 0; i < f.group; i += kLanes) {
      const Vec code = q.inverse == 0.0f ? zero() : round_to_int(mul(row.load(i), inverse));
      if (f.planes == Planes::kTwo) {
        const Vec high = round_to_int(mul(code, set1(0x1p-7f)));
        plane.put(high);
        low_plane.put(fma(high, set1(-128.0f), code));
      } else {
        plane.put(code);
      }
    }
    groups[m] = {{plane.finish<Codes>(q.scale, f), {}}, 0};
    if (f.planes == Planes::kTwo) groups[m].plane[1] = low_plane.finish<Codes>(0.0f, f);
    if (q.has_outlier) {
      groups[m].plane[1].scale[0] = q.scale;  // for the remainder, below
      tile_has_residual = 1;
    }
  }
  groups[0].tile_has_residual = tile_has_residual;
  if (tile_has_residual == 0) return;
  for (int64_t m = 0; m < tile.rows; ++m) {  // in every row: a tile is multiplied as a whole
    const RowGroupSource<kIsWhole> row = source(m);
    const float scale = groups[m].plane[1].scale[0];
    const bool has_outlier = scale != 0.0f;
    const Quantizer q = quantizers[m];
    PlaneWriter plane(second + 4 * m, tile.rows);
    for (int64_t i = 0; i < f.group; i += kLanes) {
      const Vec v = row.load(i);
      const Vec left = fma(set1(-scale), round_to_int(mul(v, set1(q.inverse))), v);
      plane.put(has_outlier ? round_to_int(mul(left, set1(254.0f / scale))) : zero());
    }
    groups[m].plane[1] = plane.finish<Codes>(has_outlier ? scale / 254.0f : 0.0f, f);
  }
}

template <class Codes, int kRowTile>
void pack_int_rows(const PackRowsJob& job, int64_t tile_begin, int64_t tile_end) {
  const IntFormat& f = job.format;
  const int64_t num_groups = num_groups_of(job.k, f);
  for (int64_t t = tile_begin; t < tile_end; ++t) {
    const Tile tile = tile_at<kRowTile>(job.num_rows, t);
    std::byte* first = job.packed + tile.begin * int_row_bytes(job.k, f);
    std::byte* second = first + tile.rows * num_groups * first_plane_bytes(f);
    const int64_t first_group = job.k_begin / f.group;
    first += tile.rows * first_group * first_plane_bytes(f);
    if (f.planes != Planes::kOne) second += tile.rows * first_group * f.group;
    for (int64_t g = first_group; g * f.group < job.k_end; ++g) {
      if (g * f.group + f.group <= job.k_end) {
        pack_group<Codes, kRowTile, true>(job, tile, g, first, second);
      } else {
        pack_group<Codes, kRowTile, false>(job, tile, g, first, second);
      }
      first += tile.rows * first_plane_bytes(f);
      if (f.planes != Planes::kOne) second += tile.rows * f.group;
    }
  }
}

}  // namespace fastllm::cpu::FASTLLM_ISA
