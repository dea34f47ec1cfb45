// Barriers. All order shared and global memory among the threads that take part.
#pragma once

#include "cuda/fl/types.h"

namespace fl {

// Every thread of the block must come, to the same of the two, and the lanes of a warp from one
// place; none may have returned.
__device__ inline void sync_threads() { __syncthreads(); }
__device__ inline bool sync_threads_or(bool predicate) { return __syncthreads_or(predicate) != 0; }

__device__ inline void sync_warp(uint32_t mask = kFullMask) { __syncwarp(mask); }

}  // namespace fl
