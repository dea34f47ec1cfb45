// mma_e4m3 where the chip has none: e4m3 become halves, exactly, for two products of 16 columns. Bytes 0, 1 and 2, 3 of
// a register are columns 2t, 2t + 1 and 2t + 8, 2t + 9 of a product, in A and B alike. The same numbers but for the
// order and the rounding of the sum.
#pragma once

#if defined(FL_SIMT)
#include "cuda/fl/simt/matrix.h"
#else
#include "cuda/fl/ptx/matrix.h"
#include "cuda/fl/ptx/numbers.h"
#endif

namespace fl {

__device__ inline void mma_e4m3_by_halves(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  for (int i = 0; i < 2; ++i) {
    const uint32_t low = a[2 * i];       // row g
    const uint32_t high = a[2 * i + 1];  // row g + 8
    const uint32_t a16[4] = {f16x2_from_e4m3_bytes<0, 1>(low), f16x2_from_e4m3_bytes<0, 1>(high),
                             f16x2_from_e4m3_bytes<2, 3>(low), f16x2_from_e4m3_bytes<2, 3>(high)};
    const uint32_t b16[2] = {f16x2_from_e4m3_bytes<0, 1>(b[i]), f16x2_from_e4m3_bytes<2, 3>(b[i])};
    mma_f16(d, a16, b16);
  }
}

}  // namespace fl
