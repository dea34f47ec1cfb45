// Asynchronous copies from global to shared memory. A thread's copies since its last commit form a group; wait<N>
// returns when at most the N newest groups of the thread are unfinished. Other threads see the bytes after a barrier.
#pragma once

#include "cuda/fl/types.h"

namespace fl {

// Bytes: 4, 8 or 16, both addresses aligned to it. Only the first `source_bytes` are read; zeros fill the rest.
template <int Bytes>
__device__ inline void cp_async(uint32_t shared, const void* global, int source_bytes = Bytes) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  if constexpr (Bytes == 16) {  // .cg: around L1, which would only be thrashed
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared), "l"(global), "r"(source_bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(shared), "l"(global), "n"(Bytes),
                 "r"(source_bytes)
                 : "memory");
  }
}
__device__ inline void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
template <int Newest>
__device__ inline void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(Newest) : "memory");
}

}  // namespace fl
