// Who does what in a step. Each block works this out for itself from the lengths on the device: S numbers and a scan
// cost it less than another launch and a list in memory would, and nothing has to be sized by the host or reset.
//
//   decode   sequences with few new tokens: an item is (block of 8 NT rows, kv head, unit) and belongs to one warp.
//   With more than
//            one unit the results go to cells of scratch memory (one per unit and query head), as long as there are
//            any;
//   merge    an item is (token, head) of such a sequence: folds its cells;
//   prefill  all other sequences: an item is (rows of a block, kv head), all units.
// Rows get the same bits on either way (unit.h), so the choice is free.
#pragma once

#include "cuda/attention/rows.h"

namespace fastllm::cuda {

enum class Work { kDecode, kMerge, kPrefill };

// More rows than this per kv head, and reading K and V once for all of them (prefill) is better.
constexpr int32_t kMaxDecodeRows = 32;
constexpr int32_t kMaxDecodeTokens = 8;
// New tokens of a sequence, and their rows.
__host__ __device__ constexpr bool are_for_decode(int64_t tokens, int64_t rows) {
  return tokens <= 1 || (tokens <= kMaxDecodeTokens && rows <= kMaxDecodeRows);
}

// The units that the new tokens of a sequence see.
struct Units {
  int32_t first;
  int32_t count;
  __device__ Units(const AttentionParams& p, const Sequence& seq) {
    first = seq.q_len == 0 || seq.context <= 0 ? 0 : first_seen(p, seq.position(0)) / kUnitTokens;
    const int32_t end = (seq.context + kUnitTokens - 1) / kUnitTokens;
    count = end > first ? end - first : 1;  // an empty context still writes its zeros
  }
};

// In shared memory, behind the kernel's own: 2 S + 1 numbers.
struct Plan {
  int32_t* item_start;  // [S + 1]
  int32_t* cell_start;  // [S] first cell; kNoCells: one unit, needs none; kPrefill: not done by decode
  static constexpr int32_t kNoCells = -1;
  static constexpr int32_t kPrefill = -2;

  __host__ __device__ static int64_t bytes(int64_t num_seqs) { return (2 * num_seqs + 1) * 4; }
  __device__ Plan(int32_t* memory, int32_t num_seqs) : item_start(memory), cell_start(memory + num_seqs + 1) {}

  __device__ int32_t num_items(int32_t num_seqs) const { return item_start[num_seqs]; }
  // The sequence of an item; `item` becomes its index there.
  __device__ int32_t find(int32_t num_seqs, int32_t& item) const {
    int32_t low = 0;
    int32_t high = num_seqs;  // item_start[low] <= item < item_start[high]
    while (high - low > 1) {
      const int32_t middle = (low + high) / 2;
      (item_start[middle] <= item ? low : high) = middle;
    }
    item -= item_start[low];
    return low;
  }
};

// All threads of the block. rows_per_item: of decode and prefill.
template <Work W>
__device__ inline void make_plan(const AttentionParams& p, Plan plan, int32_t rows_per_item) {
  const int32_t group = p.group();
  const auto lane = static_cast<int32_t>(fl::lane_id());
  if (fl::warp_id() == 0) {
    int64_t cells = 0;  // before this round of 32 sequences
    int32_t items = 0;
    for (int32_t begin = 0; begin < p.num_seqs; begin += 32) {
      const int32_t s = begin + lane;
      int64_t need = 0;
      int32_t count = 0;
      int32_t rows = 0;
      int32_t num_units = 0;
      bool is_decode = false;
      if (s < p.num_seqs) {
        const Sequence seq(p, s);
        rows = seq.q_len * group;
        num_units = Units(p, seq).count;
        is_decode = are_for_decode(seq.q_len, rows);
        if (is_decode && num_units > 1) need = static_cast<int64_t>(num_units) * seq.q_len * p.num_heads;
      }
      int64_t cells_end = need;
      for (uint32_t step = 1; step < 32; step *= 2) {
        const int64_t other = fl::shfl_up(fl::kFullMask, cells_end, step);
        if (lane >= static_cast<int32_t>(step)) cells_end += other;
      }
      cells_end += cells;
      const int64_t cell = cells_end - need;
      cells = fl::shfl(fl::kFullMask, cells_end, 31);
      if (cells_end > p.num_cells && need > 0) is_decode = false;

      const int32_t blocks = (rows + rows_per_item - 1) / rows_per_item;
      if (W == Work::kDecode && is_decode) count = blocks * p.num_kv_heads * num_units;
      if (W == Work::kMerge && is_decode && need > 0) count = rows * p.num_kv_heads;
      if (W == Work::kPrefill && !is_decode) count = blocks * p.num_kv_heads;
      int32_t items_end = count;
      for (uint32_t step = 1; step < 32; step *= 2) {
        const int32_t other = fl::shfl_up(fl::kFullMask, items_end, step);
        if (lane >= static_cast<int32_t>(step)) items_end += other;
      }
      items_end += items;
      if (s < p.num_seqs) {
        plan.item_start[s] = items_end - count;
        plan.cell_start[s] = !is_decode ? Plan::kPrefill : need > 0 ? static_cast<int32_t>(cell) : Plan::kNoCells;
      }
      items = fl::shfl(fl::kFullMask, items_end, 31);
    }
    if (lane == 0) plan.item_start[p.num_seqs] = items;
  }
  fl::sync_threads();
}

}  // namespace fastllm::cuda
