// What the linear kernels share: how rows are cut into tiles, and how a result is written.
#pragma once

#include "cpu/simd.h"

namespace fastllm::cpu::FASTLLM_ISA {

// Rows of tile t when num_rows are split into tiles of at most kRowTile as evenly as possible.
struct Tile {
  int64_t begin, rows;
};
template <int kRowTile>
FASTLLM_INLINE Tile tile_at(int64_t num_rows, int64_t t) {
  const int64_t num_tiles = (num_rows + kRowTile - 1) / kRowTile;
  const int64_t quotient = num_rows / num_tiles;
  const int64_t remainder = num_rows % num_tiles;
  return {t * quotient + (t < remainder ? t : remainder), quotient + (t < remainder ? 1 : 0)};
}

FASTLLM_INLINE const float* row_of(const PackRowsJob& job, int64_t row) {
  return job.x + (job.row_ids != nullptr ? job.row_ids[row] : row) * job.x_stride;
}

// Writes 16 columns of one row. `column` is relative to the first column of the job.
FASTLLM_INLINE void put(const LinearJob& job, int64_t row, int64_t column, Vec acc) {
  const int64_t n = job.num_cols - column;
  if (n <= 0) return;
  if (job.bias != nullptr) acc = add(acc, load_n(job.bias + column, n));
  if (job.row_weights != nullptr) {
    float* y = job.y + job.row_ids[row] * job.y_stride + column;
    store_n(y, fma(set1(job.row_weights[row]), acc, load_n(y, n)), n);
  } else {
    store_n(job.y + row * job.y_stride + column, acc, n);
  }
}

// Calls a kernel with the number of rows of a tile as a constant: Kernel::multiply<kRows, kHalves, kFirst>(job, row,
// first half), where kFirst is the parity of the first half.
template <class Kernel, int kHalves, int kFirst, int kRows = Kernel::kRowTile>
FASTLLM_INLINE void multiply_rows(int64_t rows, const LinearJob& job, int64_t row_begin, int64_t first_half) {
  if constexpr (kRows == 1) {
    Kernel::template multiply<1, kHalves, kFirst>(job, row_begin, first_half);
  } else {
    if (rows == kRows) return Kernel::template multiply<kRows, kHalves, kFirst>(job, row_begin, first_half);
    multiply_rows<Kernel, kHalves, kFirst, kRows - 1>(rows, job, row_begin, first_half);
  }
}

// All panels of a job. One row: two panels at once, so that four chains hide the latency of the multiply-add. More:
// for each kHalves half panels every tile of rows, while the panel is in the cache.
template <class Kernel>
void run(const LinearJob& job) {
  constexpr int kHalves = Kernel::kHalves;
  const int64_t num_halves = 2 * job.num_panels;
  if (job.num_rows == 1) {
    int64_t half = 0;
    for (; half + 4 <= num_halves; half += 4) Kernel::template multiply<1, 4, 0>(job, 0, half);
    for (; half < num_halves; half += 2) Kernel::template multiply<1, 2, 0>(job, 0, half);
    return;
  }
  const int64_t num_tiles = (job.num_rows + Kernel::kRowTile - 1) / Kernel::kRowTile;
  for (int64_t half = 0; half < num_halves; half += 2) {
    for (int64_t t = 0; t < num_tiles; ++t) {
      const Tile tile = tile_at<Kernel::kRowTile>(job.num_rows, t);
      multiply_rows<Kernel, kHalves, 0>(tile.rows, job, tile.begin, half);
      if constexpr (kHalves == 1) multiply_rows<Kernel, 1, 1>(tile.rows, job, tile.begin, half + 1);
    }
  }
}

}  // namespace fastllm::cpu::FASTLLM_ISA
