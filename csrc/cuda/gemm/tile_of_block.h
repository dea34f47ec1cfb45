// Which rows a block computes, inside kernels.
#pragma once

#include "cuda/fl/gpu.h"
#include "cuda/gemm/gemm.h"

namespace fastllm::cuda {

// Args: has num_rows, tiles and num_tiles of a GemmCall. False: the grid has more blocks than there are tiles, and this
// one has none. The same for all threads of the block.
template <int kTokens, class Args>
__device__ inline bool find_tile(const Args& args, RowTile& tile) {
  const auto block = static_cast<int32_t>(blockIdx.x);
  if (args.tiles != nullptr) {
    if (block >= *args.num_tiles) return false;
    tile = args.tiles[block];
    return true;
  }
  const int32_t begin = block * kTokens;
  tile = {0, begin, args.num_rows - begin < kTokens ? args.num_rows - begin : kTokens};
  return true;
}

}  // namespace fastllm::cuda
