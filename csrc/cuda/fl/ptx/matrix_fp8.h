// Products of fp8 on tensor cores; registers as in ptx/matrix.h.
#pragma once

#include "cuda/fl/mma_by_halves.h"

namespace fl {

// d += a b on e4m3 that are not NaN, m16n8k32: exact products, summed in float32, of which chips keep fewer bits here
// than with halves. Chips before sm_89 have no such instruction.
__device__ inline void mma_e4m3(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if __CUDA_ARCH__ >= 890
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#else
  mma_e4m3_by_halves(d, a, b);
#endif
}

}  // namespace fl
