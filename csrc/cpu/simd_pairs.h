// Dot products of 16-bit pairs: 16 lanes of 32 bits, each holding two consecutive steps of a reduction.
//
//   Pairs                16 lanes of two int16 (or, on the bf16 level, two bf16)
//   widen_pairs(p)       32 signed bytes as Pairs
//   set_pair(x)          the same pair in each lane
//   dot(acc, a, b)       acc + a[0] * b[0] + a[1] * b[1], lane by lane, exact in int32 (Ints of simd_int.h)
//   store_i16(p, x)      x rounded to nearest even; |x| < 32768
// Integers, so every level has the same bits.
#pragma once

#include "cpu/simd_int.h"

namespace fastllm::cpu::FASTLLM_ISA {

#if defined(__AVX512F__)

struct Pairs {
  __m512i v;
};
FASTLLM_INLINE Pairs widen_pairs(const std::byte* p) {
  return {_mm512_maskz_cvtepi8_epi16(0xffffffffu, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
FASTLLM_INLINE Pairs set_pair(int32_t x) { return {_mm512_set1_epi32(x)}; }
FASTLLM_INLINE Ints dot(Ints acc, Pairs a, Pairs b) {
#if defined(__AVX512VNNI__)
  return as_ints(_mm512_dpwssd_epi32(bits_of(acc), a.v, b.v));
#else
  return add(acc, as_ints(_mm512_madd_epi16(a.v, b.v)));
#endif
}
FASTLLM_INLINE void store_i16(int16_t* p, Vec x) {
  const __m512i rounded = _mm512_maskz_cvtps_epi32(0xffff, x.v);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtepi32_epi16(0xffff, rounded));
}

#elif defined(__AVX2__)

struct Pairs {
  __m256i a, b;
};
FASTLLM_INLINE Pairs widen_pairs(const std::byte* p) {
  const auto* half = reinterpret_cast<const __m128i*>(p);
  return {_mm256_cvtepi8_epi16(_mm_loadu_si128(half)), _mm256_cvtepi8_epi16(_mm_loadu_si128(half + 1))};
}
FASTLLM_INLINE Pairs set_pair(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
FASTLLM_INLINE Ints dot(Ints acc, Pairs x, Pairs y) {
  return add(acc, as_ints(_mm256_madd_epi16(x.a, y.a), _mm256_madd_epi16(x.b, y.b)));
}
FASTLLM_INLINE void store_i16(int16_t* p, Vec x) {
  const __m256i packed = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}

#else

struct Pairs {
  int16_t v[32];
};
FASTLLM_INLINE Pairs widen_pairs(const std::byte* p) {
  Pairs r;
  for (int i = 0; i < 32; ++i) r.v[i] = static_cast<int8_t>(p[i]);
  return r;
}
FASTLLM_INLINE Pairs set_pair(int32_t x) {
  Pairs r;
  for (int i = 0; i < 16; ++i) {
    r.v[2 * i] = static_cast<int16_t>(x);
    r.v[2 * i + 1] = static_cast<int16_t>(x >> 16);
  }
  return r;
}
FASTLLM_INLINE Ints dot(Ints acc, Pairs a, Pairs b) {
  for (int i = 0; i < 16; ++i) acc.v[i] += a.v[2 * i] * b.v[2 * i] + a.v[2 * i + 1] * b.v[2 * i + 1];
  return acc;
}
FASTLLM_INLINE void store_i16(int16_t* p, Vec x) {
  // Adding 1.5 * 2^23 rounds to an integer, which is then in the low bits. (lrintf of a NaN is not defined.)
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int16_t>(__builtin_bit_cast(uint32_t, x.v[i] + 12582912.0f));
}

#endif

#if defined(__AVX512BF16__)
// Two bf16 products per lane, added in the order that the instruction defines; subnormals count as 0.
FASTLLM_INLINE Pairs load_pairs(const std::byte* p) { return {load_bits(p)}; }
FASTLLM_INLINE Vec dot(Vec acc, Pairs a, Pairs b) {
  return {_mm512_dpbf16_ps(acc.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
}
// Keeps the steps whose half of `mask` is set.
FASTLLM_INLINE Pairs keep(Pairs a, uint32_t mask) {
  return {_mm512_and_si512(a.v, _mm512_set1_epi32(static_cast<int32_t>(mask)))};
}
#endif

FASTLLM_INLINE int32_t read_pair(const void* p) {
  int32_t x;
  __builtin_memcpy(&x, p, sizeof(x));
  return x;
}

}  // namespace fastllm::cpu::FASTLLM_ISA
