// Types that both halves of fl/gpu.h share, and the keywords of CUDA for compilers that have none.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <type_traits>

#if !defined(__CUDACC__)
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#endif

namespace fl {

// Storage of 16 and 8 bits. Arithmetic happens in float or in packed registers (uint32_t of two halves, low half
// first).
struct bf16 {
  uint16_t bits;
};
struct f16 {
  uint16_t bits;
};
struct e4m3 {
  uint8_t bits;
};

// N values that are loaded and stored as one access of sizeof(T) * N bytes.
template <class T, int N>
struct alignas(sizeof(T) * N) Vec {
  T v[N];
  __host__ __device__ constexpr T& operator[](int i) { return v[i]; }
  __host__ __device__ constexpr const T& operator[](int i) const { return v[i]; }
};

template <class To, class From>
__host__ __device__ inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From) && std::is_trivially_copyable_v<To> && std::is_trivially_copyable_v<From>);
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

constexpr uint32_t kFullMask = 0xffffffffu;

}  // namespace fl
