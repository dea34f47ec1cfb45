// What the linear kernels share: how rows are cut into tiles, and how a result is written.
#pragma once

#include "cpu/simd.h"

namespace fastllm::cpu::FASTLLM_ISA {

// Rows of tile t when num_rows are split into tiles of at most kRowTile as evenly as possible: the first ones have one
// row more than the others.
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

// A row at column k_begin.
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

// Asks for the job's bytes ahead, if any, in equal parts: one per call of next(). Into the second cache: the tile that
// computes needs the first one for itself.
class Ahead {
 public:
  FASTLLM_INLINE Ahead(const LinearJob& job, int64_t num_steps)
      : at_(job.ahead), step_(job.ahead != nullptr ? (job.ahead_bytes + num_steps - 1) / num_steps : 0) {}
  FASTLLM_INLINE void next() {
    const std::byte* end = at_ + step_;
    for (; at_ < end; at_ += 64) __builtin_prefetch(at_, 0, 2);
  }

 private:
  const std::byte* at_;
  int64_t step_;
};

// Calls a kernel with the number of rows of a tile as a constant: Kernel::multiply<kRows, kHalves, kFirst>(job, row,
// first half), where kFirst is the parity of the first half.
template <class Kernel, int kHalves, int kFirst, int kRows = Kernel::kRowTile, class Job>
FASTLLM_INLINE void multiply_rows(int64_t rows, Job& job, int64_t row_begin, int64_t first_half) {
  if constexpr (kRows == 1) {
    Kernel::template multiply<1, kHalves, kFirst>(job, row_begin, first_half);
  } else {
    if (rows == kRows) return Kernel::template multiply<kRows, kHalves, kFirst>(job, row_begin, first_half);
    multiply_rows<Kernel, kHalves, kFirst, kRows - 1>(rows, job, row_begin, first_half);
  }
}

// All panels of a job. One row: two panels at once, so that four chains hide the latency of the multiply-add. More:
// for each kHalves half panels every tile of rows, while the panel is in the cache. The first tile waits for memory,
// which would be idle while the others compute, so they fetch the next panel (up to 18 % faster with 8 to 32 rows). A
// single tile does it if it is full; a smaller one computes less than it reads, and is slower with it.
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
  // No divisions within the loops: with K = 1024 a tile is 1500 cycles.
  const int64_t num_tiles = (job.num_rows + Kernel::kRowTile - 1) / Kernel::kRowTile;
  const int64_t fewest = job.num_rows / num_tiles;
  const int64_t num_larger = job.num_rows % num_tiles;
  LinearJob part = job;
  part.ahead_bytes = num_tiles == 1 ? job.panel_bytes : (job.panel_bytes + num_tiles - 2) / (num_tiles - 1);
  for (int64_t half = 0; half < num_halves; half += 2) {
    const std::byte* next_panel = job.panels + (half / 2 + 1) * job.panel_bytes;
    int64_t row = 0;
    for (int64_t t = 0; t < num_tiles; ++t) {
      const int64_t rows = fewest + (t < num_larger ? 1 : 0);
      const bool fetches = t > 0 || (num_tiles == 1 && rows == Kernel::kRowTile);
      part.ahead = fetches ? next_panel + (t > 0 ? t - 1 : 0) * part.ahead_bytes : nullptr;
      multiply_rows<Kernel, kHalves, 0>(rows, part, row, half);
      if constexpr (kHalves == 1) multiply_rows<Kernel, 1, 1>(rows, part, row, half + 1);
      row += rows;
    }
  }
}

}  // namespace fastllm::cpu::FASTLLM_ISA
