// Tensor cores and the loads that feed them. Lane l has g = l / 4, t = l % 4. All 32 lanes must come, from
// one place.
//
//   8x8 matrix of 16-bit elements in a register: lane l holds row g, columns 2t (low half) and 2t + 1.
//   m16n8k16  A: a0 (row g, k 2t..)  a1 (row g+8, k 2t..)  a2 (row g, k 2t+8..)  a3 (row g+8, k 2t+8..)
//             B: b0 (k 2t.., column g)  b1 (k 2t+8.., column g)
//   m16n8k32  A: a0 (row g, k 4t..4t+3)  a1 (row g+8, same)  a2 (row g, k 16+4t..)  a3 (row g+8, k 16+4t..)
//             B: b0 (k 4t..4t+3, column g)  b1 (k 16+4t.., column g)
//   C, D      c0, c1 (row g, columns 2t, 2t+1)  c2, c3 (row g+8)
#pragma once

#include "cuda/fl/types.h"

namespace fl {

// Num: 1, 2 or 4 matrices. The address of row r of matrix i comes from lane 8 i + r (16 bytes, aligned).
template <int Num>
__device__ inline void ldmatrix(uint32_t (&d)[Num], uint32_t row_address) {
  static_assert(Num == 1 || Num == 2 || Num == 4);
  if constexpr (Num == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(d[0]) : "r"(row_address) : "memory");
  } else if constexpr (Num == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(d[0]), "=r"(d[1])
                 : "r"(row_address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(row_address)
                 : "memory");
  }
}
// The same, each matrix transposed: lane l gets rows 2t and 2t + 1 of column g.
template <int Num>
__device__ inline void ldmatrix_trans(uint32_t (&d)[Num], uint32_t row_address) {
  static_assert(Num == 1 || Num == 2 || Num == 4);
  if constexpr (Num == 1) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x1.trans.shared.b16 {%0}, [%1];"
                 : "=r"(d[0])
                 : "r"(row_address)
                 : "memory");
  } else if constexpr (Num == 2) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(d[0]), "=r"(d[1])
                 : "r"(row_address)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
                 : "r"(row_address)
                 : "memory");
  }
}
// Transposes an 8x8 matrix held in registers.
__device__ inline uint32_t movmatrix_trans(uint32_t x) {
  uint32_t y;
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(y) : "r"(x));
  return y;
}

// d += a b, products of 16-bit floats summed in float32.
__device__ inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
__device__ inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// d += a b on bytes, exact modulo 2^32: A unsigned and B signed.
__device__ inline void mma_u8s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

}  // namespace fl
