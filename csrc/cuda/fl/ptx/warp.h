// Within a warp. Every function takes the mask of the lanes that take part; each of them must call it, with the same
// mask. Lanes are not in lock step between calls.
#pragma once

#include "cuda/fl/types.h"

namespace fl {

__device__ inline uint32_t lane_id() {
  uint32_t y;
  asm("mov.u32 %0, %%laneid;" : "=r"(y));
  return y;
}
// Index of the warp in a block whose threads lie along x.
__device__ inline uint32_t warp_id() { return threadIdx.x / 32; }

// T: any type of 4 or 8 bytes. Lanes are grouped by `width` (a power of two); a source outside the group, or not in
// the mask, gives the lane's own value.
template <class T>
__device__ inline T shfl(uint32_t mask, T x, int source, int width = 32) {
  if constexpr (sizeof(T) == 8) {
    return bit_cast<T>(__shfl_sync(mask, bit_cast<unsigned long long>(x), source, width));
  } else {
    return bit_cast<T>(__shfl_sync(mask, bit_cast<uint32_t>(x), source, width));
  }
}
template <class T>
__device__ inline T shfl_up(uint32_t mask, T x, uint32_t delta, int width = 32) {
  if constexpr (sizeof(T) == 8) {
    return bit_cast<T>(__shfl_up_sync(mask, bit_cast<unsigned long long>(x), delta, width));
  } else {
    return bit_cast<T>(__shfl_up_sync(mask, bit_cast<uint32_t>(x), delta, width));
  }
}
template <class T>
__device__ inline T shfl_xor(uint32_t mask, T x, int lane_mask, int width = 32) {
  if constexpr (sizeof(T) == 8) {
    return bit_cast<T>(__shfl_xor_sync(mask, bit_cast<unsigned long long>(x), lane_mask, width));
  } else {
    return bit_cast<T>(__shfl_xor_sync(mask, bit_cast<uint32_t>(x), lane_mask, width));
  }
}

__device__ inline bool any(uint32_t mask, bool predicate) { return __any_sync(mask, predicate) != 0; }
__device__ inline bool all(uint32_t mask, bool predicate) { return __all_sync(mask, predicate) != 0; }
// Lanes of the mask that hold the same x.
__device__ inline uint32_t match_any(uint32_t mask, uint32_t x) { return __match_any_sync(mask, x); }

// T: uint32_t or int32_t.
template <class T>
__device__ inline T reduce_add(uint32_t mask, T x) {
  static_assert(std::is_same_v<T, uint32_t> || std::is_same_v<T, int32_t>);
  return __reduce_add_sync(mask, x);
}

}  // namespace fl
