// Sorts (token, choice) pairs by expert and cuts each expert's run into tiles.
//
// One CTA of 8 warps; warp w owns the w-th eighth of the pairs. (1) Each warp counts its pairs per expert: lanes with
// the same expert find each other by match_any, the lowest of them adds. (2) Warp 0 scans the counts over experts and
// warps: where each (expert, warp) begins, and the tiles. (3) Each warp walks its pairs again and gives out slots in
// order. No atomics: the result is the same every time, and stable.
//
// Shared memory: one integer per (warp, expert). 8192 tokens x 8 choices are 256 rounds per warp, twice.
#include "core/checked.h"
#include "core/error.h"
#include "cuda/fl/gpu.h"
#include "cuda/moe/moe.h"

namespace fastllm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

struct SortArgs {
  const int32_t* experts;
  int32_t num_pairs;
  int32_t top_k;
  int32_t num_experts;
  int32_t tile_rows;
  MoeSlots slots;
  ExpertUse* use;
};

// Sum over the lanes up to and including this one.
__device__ int inclusive_scan(int x, int lane) {
  for (int step = 1; step < 32; step *= 2) {
    const int below = fl::shfl_up(fl::kFullMask, x, static_cast<uint32_t>(step));
    if (lane >= step) x += below;
  }
  return x;
}

// registers: 48
__global__ void __launch_bounds__(kThreads) moe_sort_kernel(SortArgs a) {
  int32_t* table = fl::smem<int32_t>();  // [warps][experts]: counts, then the next slot
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  int32_t* mine = table + warp * a.num_experts;
  const int per_warp = ((a.num_pairs + kWarps - 1) / kWarps + 31) / 32 * 32;
  const int begin = warp * per_warp;
  const int end = begin + per_warp < a.num_pairs ? begin + per_warp : a.num_pairs;

  for (int e = lane; e < a.num_experts; e += 32) mine[e] = 0;
  fl::sync_warp();
  for (int first = begin; first < end; first += 32) {
    const int i = first + lane;
    const int expert = i < end ? a.experts[i] : -1;
    const uint32_t same = fl::match_any(fl::kFullMask, static_cast<uint32_t>(expert));
    if (expert >= 0 && fl::ffs(same) - 1 == lane) mine[expert] += fl::popc(same);
    fl::sync_warp();
  }
  fl::sync_threads();

  if (warp == 0) {
    int num_slots = 0;
    int num_tiles = 0;
    for (int first = 0; first < a.num_experts; first += 32) {
      const int e = first + lane;
      int count = 0;
      for (int w = 0; w < kWarps && e < a.num_experts; ++w) count += table[w * a.num_experts + e];
      const int tiles = (count + a.tile_rows - 1) / a.tile_rows;
      if (a.use != nullptr && count > 0) {
        a.use[e].num_tokens += count;
        ++a.use[e].num_reads;
      }
      const int slots_through = inclusive_scan(count, lane);
      const int tiles_through = inclusive_scan(tiles, lane);
      int slot = num_slots + slots_through - count;
      for (int i = 0; i < tiles; ++i) {
        const int left = count - i * a.tile_rows;
        a.slots.tiles[num_tiles + tiles_through - tiles + i] = {e, slot + i * a.tile_rows,
                                                                left < a.tile_rows ? left : a.tile_rows};
      }
      for (int w = 0; w < kWarps && e < a.num_experts; ++w) {
        const int of_warp = table[w * a.num_experts + e];
        table[w * a.num_experts + e] = slot;
        slot += of_warp;
      }
      num_slots += fl::shfl(fl::kFullMask, slots_through, 31);
      num_tiles += fl::shfl(fl::kFullMask, tiles_through, 31);
    }
    if (lane == 0) *a.slots.num_tiles = num_tiles;
  }
  fl::sync_threads();

  for (int first = begin; first < end; first += 32) {
    const int i = first + lane;
    const int expert = i < end ? a.experts[i] : -1;
    const uint32_t same = fl::match_any(fl::kFullMask, static_cast<uint32_t>(expert));
    const int next = expert >= 0 ? mine[expert] : 0;
    fl::sync_warp();  // all have read before the first of each expert moves its mark
    if (expert >= 0) {
      const int slot = next + fl::popc(same & ((1u << lane) - 1));
      a.slots.token_of[slot] = i / a.top_k;
      a.slots.slot_of[i] = slot;
      if (fl::ffs(same) - 1 == lane) mine[expert] = next + fl::popc(same);
    }
    fl::sync_warp();
  }
}

}  // namespace

void moe_sort(fl::Stream& stream, const int32_t* experts, int64_t num_tokens, int64_t top_k, int64_t num_experts,
              int tile_rows, const MoeSlots& slots, ExpertUse* use) {
  const SortArgs args{experts,
                      narrow<int32_t>(num_tokens * top_k, "pairs of tokens and experts"),
                      narrow<int32_t>(top_k, "top_k"),
                      narrow<int32_t>(num_experts, "experts"),
                      tile_rows,
                      slots,
                      use};
  const int64_t bytes = kWarps * num_experts * static_cast<int64_t>(sizeof(int32_t));
  fl::launch(stream, {"moe_sort", {1}, kThreads, bytes}, moe_sort_kernel, args);
}

}  // namespace fastllm::cuda
