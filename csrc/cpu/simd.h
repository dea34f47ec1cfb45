// Thin vectors of 16 float lanes for the kernel files. Every level has the same 16 lanes and every horizontal reduction
// the same tree (i with i + 8, then 4, 2, 1), so a result does not depend on the level.
//
// Each level's header defines Vec, Mask and: zero set1 load load_n store store_n add sub mul div fma max min less
// is_number lanes bits select scale2 reduce_add reduce_max load_pair store_bf16 store_f16; Doubles, 16 sums of lanes in
// double, with zero_doubles, add and reduce_add.
//   max(a, b), min(a, b)   b where one of them is NaN
//   bits(mask)             bit i is lane i
//   lanes(begin, end)      mask of lanes begin <= i < end; begin and end may lie outside [0, 16]
//   scale2(p, t)           p * 2^n where n is the integer in the low mantissa bits of t = n + 1.5 * 2^23
//   load_pair(p, a, b)     steps 0 and 1 of a pair block (kernels.h), widened to float
#pragma once

#include <cstddef>
#include <cstdint>

#include "cpu/kernels.h"

namespace fastllm::cpu::FASTLLM_ISA {

// Element types as tags; kernels never see the project's bf16 and f16.
struct F32 {
  static constexpr Elem kElem = Elem::kF32;
};
struct BF16 {
  static constexpr Elem kElem = Elem::kBF16;
};
struct F16 {
  static constexpr Elem kElem = Elem::kF16;
};

constexpr float kInfinity = __builtin_inff();

}  // namespace fastllm::cpu::FASTLLM_ISA

#if defined(__AVX512F__)
#include "cpu/simd_avx512.h"
#elif defined(__AVX2__)
#include "cpu/simd_avx2.h"
#else
#include "cpu/simd_scalar.h"
#endif

namespace fastllm::cpu::FASTLLM_ISA {

// The largest number of accumulators that stay in registers beside operands.
#if defined(__AVX512F__)
constexpr int kMaxAccumulators = 24;
#elif defined(__AVX2__)
constexpr int kMaxAccumulators = 6;  // of two registers each
#else
constexpr int kMaxAccumulators = 4;
#endif

}  // namespace fastllm::cpu::FASTLLM_ISA
