// Barriers. All order shared and global memory among the threads that take part.
#pragma once

#include "cuda/fl/types.h"

namespace fl {

// Every thread of the block must come; none may have returned.
__device__ inline void sync_threads() { __syncthreads(); }
__device__ inline bool sync_threads_or(bool predicate) { return __syncthreads_or(predicate) != 0; }
__device__ inline bool sync_threads_and(bool predicate) { return __syncthreads_and(predicate) != 0; }
__device__ inline int sync_threads_count(bool predicate) { return __syncthreads_count(predicate); }

// Named barrier `id` in 1..15 of `num_threads` (whole warps): sync waits for all, arrive only counts.
__device__ inline void bar_sync(int id, int num_threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}
__device__ inline void bar_arrive(int id, int num_threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}

__device__ inline void sync_warp(uint32_t mask = kFullMask) { __syncwarp(mask); }

}  // namespace fl
