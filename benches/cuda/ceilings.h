// What a chip can do at most, as far as its kernels here could use it.
#pragma once

#include "cuda/fl/host.h"

namespace fastllm::bench {

// Loads `bytes`, a multiple of 64 MiB, in sixteens. sink: one word, for results that are not dropped.
void launch_read(fl::Stream& stream, const void* from, int64_t bytes, uint32_t* sink);
// `rounds` of kMmasPerRound m16n8k16 bf16 products in each of the grid's warps, on registers alone.
constexpr int kMmasPerRound = 8;
constexpr int kMmaWarps = 8;  // of a block
void launch_mma(fl::Stream& stream, int64_t num_blocks, int rounds, uint32_t* sink);

}  // namespace fastllm::bench
