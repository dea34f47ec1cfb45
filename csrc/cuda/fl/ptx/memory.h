// Shared memory, loads that need a hint, atomics, ordering between blocks.
#pragma once

#include "cuda/fl/types.h"

namespace fl {

// The block's dynamic shared memory (aligned to 1024 bytes), as the kernel's one struct or an array of it.
template <class T>
__device__ inline T* smem() {
  extern __shared__ __align__(1024) unsigned char fl_shared_memory[];
  return reinterpret_cast<T*>(fl_shared_memory);
}
// The 32-bit address that cp_async and ldmatrix take.
__device__ inline uint32_t smem_addr(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// Global memory that nothing writes while the kernel runs. T: 4, 8 or 16 bytes, aligned to its size.
template <class T>
__device__ inline T load_nc(const T* global) {
  if constexpr (sizeof(T) == 16) {
    uint4 u;
    asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(u.x), "=r"(u.y), "=r"(u.z), "=r"(u.w) : "l"(global));
    return bit_cast<T>(u);
  } else if constexpr (sizeof(T) == 8) {
    uint2 u;
    asm("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(u.x), "=r"(u.y) : "l"(global));
    return bit_cast<T>(u);
  } else {
    static_assert(sizeof(T) == 4);
    uint32_t u;
    asm("ld.global.nc.u32 %0, [%1];" : "=r"(u) : "l"(global));
    return bit_cast<T>(u);
  }
}
// The same for bytes that are read once and should not stay in the caches (weights).
template <class T>
__device__ inline T load_stream(const T* global) {
  static_assert(sizeof(T) == 16);
  uint4 u;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(u.x), "=r"(u.y), "=r"(u.z), "=r"(u.w)
      : "l"(global));
  return bit_cast<T>(u);
}

// Atomics return the old value. (float sums would depend on the order: not offered.)
__device__ inline int32_t atomic_add(int32_t* p, int32_t x) { return atomicAdd(p, x); }
__device__ inline uint32_t atomic_add(uint32_t* p, uint32_t x) { return atomicAdd(p, x); }
__device__ inline uint64_t atomic_add(uint64_t* p, uint64_t x) {
  return atomicAdd(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(x));
}
__device__ inline uint64_t atomic_max(uint64_t* p, uint64_t x) {
  return atomicMax(reinterpret_cast<unsigned long long*>(p), static_cast<unsigned long long>(x));
}
__device__ inline uint32_t atomic_or(uint32_t* p, uint32_t x) { return atomicOr(p, x); }

// Between blocks: write, fence_device, then an atomic that others read.
__device__ inline void fence_device() { __threadfence(); }

}  // namespace fl
