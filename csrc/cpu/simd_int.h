// Integer lanes beside the float lanes of simd.h, exact and therefore the same on every level.
//
//   Ints              16 lanes of int32: set1_int, add, shift_left<n>, shift_right<n> (logical), and_bits, to_float
//   Bytes             a line of 64 bytes: four consecutive bytes belong to a lane
//   load_line(p)      Bytes;  line_as_ints(p): the same bytes as Ints
//   load_bytes(p)     16 bytes, widened to Ints
//   madd(x, y)        x * y for 0 <= x < 2^15 and -2^15 <= y < 2^15
//   store_bytes(p, v) 16 integer-valued floats of -128..127 as signed bytes
//   load_f16, load_bf16(p)   16 halves, widened to float
#pragma once

#include "cpu/simd.h"

namespace fastllm::cpu::FASTLLM_ISA {

// Sums have a vector type of their elements: as general integer vectors GCC 12 would copy (and spill) them once for
// each addition in a loop.
#if defined(__AVX512F__)

typedef int32_t IntVector __attribute__((vector_size(64)));
struct Ints {
  IntVector v;
};
FASTLLM_INLINE Ints as_ints(__m512i x) { return {reinterpret_cast<IntVector>(x)}; }
FASTLLM_INLINE __m512i bits_of(Ints x) { return reinterpret_cast<__m512i>(x.v); }
struct Bytes {
  __m512i v;
};

FASTLLM_INLINE Ints set1_int(int32_t x) { return as_ints(_mm512_set1_epi32(x)); }
FASTLLM_INLINE Ints add(Ints x, Ints y) { return {x.v + y.v}; }
template <int kBits>
FASTLLM_INLINE Ints shift_left(Ints x) {
  return as_ints(_mm512_maskz_slli_epi32(0xffff, bits_of(x), kBits));
}
template <int kBits>
FASTLLM_INLINE Ints shift_right(Ints x) {
  return as_ints(_mm512_maskz_srli_epi32(0xffff, bits_of(x), kBits));
}
FASTLLM_INLINE Ints and_bits(Ints x, int32_t bits) { return {x.v & bits}; }
FASTLLM_INLINE Vec to_float(Ints x) { return {_mm512_maskz_cvtepi32_ps(0xffff, bits_of(x))}; }
FASTLLM_INLINE Ints madd(Ints x, Ints y) { return as_ints(_mm512_madd_epi16(bits_of(x), bits_of(y))); }
FASTLLM_INLINE Bytes load_line(const std::byte* p) { return {_mm512_loadu_si512(p)}; }
FASTLLM_INLINE Ints line_as_ints(const std::byte* p) { return as_ints(_mm512_loadu_si512(p)); }
FASTLLM_INLINE Ints load_bytes(const uint8_t* p) {
  return as_ints(_mm512_maskz_cvtepu8_epi32(0xffff, _mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}
FASTLLM_INLINE void store_bytes(int8_t* p, Vec x) {
  const __m512i ints = _mm512_maskz_cvtps_epi32(0xffff, x.v);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_maskz_cvtepi32_epi8(0xffff, ints));
}
FASTLLM_INLINE Vec load_f16(const std::byte* p) { return {load_halves(p)}; }
FASTLLM_INLINE Vec load_bf16(const std::byte* p) {
  const __m512i wide = _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, wide, 16))};
}

#elif defined(__AVX2__)

typedef int32_t IntVector __attribute__((vector_size(32)));
struct Ints {
  IntVector a, b;
};
FASTLLM_INLINE Ints as_ints(__m256i a, __m256i b) {
  return {reinterpret_cast<IntVector>(a), reinterpret_cast<IntVector>(b)};
}
FASTLLM_INLINE __m256i bits_of(IntVector x) { return reinterpret_cast<__m256i>(x); }
struct Bytes {
  __m256i a, b;
};

FASTLLM_INLINE const __m256i* as_vectors(const void* p) { return static_cast<const __m256i*>(p); }
FASTLLM_INLINE Ints set1_int(int32_t x) { return as_ints(_mm256_set1_epi32(x), _mm256_set1_epi32(x)); }
FASTLLM_INLINE Ints add(Ints x, Ints y) { return {x.a + y.a, x.b + y.b}; }
template <int kBits>
FASTLLM_INLINE Ints shift_left(Ints x) {
  return as_ints(_mm256_slli_epi32(bits_of(x.a), kBits), _mm256_slli_epi32(bits_of(x.b), kBits));
}
template <int kBits>
FASTLLM_INLINE Ints shift_right(Ints x) {
  return as_ints(_mm256_srli_epi32(bits_of(x.a), kBits), _mm256_srli_epi32(bits_of(x.b), kBits));
}
FASTLLM_INLINE Ints and_bits(Ints x, int32_t bits) { return {x.a & bits, x.b & bits}; }
FASTLLM_INLINE Vec to_float(Ints x) { return {_mm256_cvtepi32_ps(bits_of(x.a)), _mm256_cvtepi32_ps(bits_of(x.b))}; }
FASTLLM_INLINE Ints madd(Ints x, Ints y) {
  return as_ints(_mm256_madd_epi16(bits_of(x.a), bits_of(y.a)), _mm256_madd_epi16(bits_of(x.b), bits_of(y.b)));
}
FASTLLM_INLINE Bytes load_line(const std::byte* p) {
  return {_mm256_loadu_si256(as_vectors(p)), _mm256_loadu_si256(as_vectors(p) + 1)};
}
FASTLLM_INLINE Ints line_as_ints(const std::byte* p) {
  return as_ints(_mm256_loadu_si256(as_vectors(p)), _mm256_loadu_si256(as_vectors(p) + 1));
}
FASTLLM_INLINE Ints load_bytes(const uint8_t* p) {
  const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return as_ints(_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)));
}
FASTLLM_INLINE void store_bytes(int8_t* p, Vec x) {
  const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b));
  const __m256i ordered = _mm256_permute4x64_epi64(words, 0xd8);
  const __m128i bytes = _mm_packs_epi16(_mm256_castsi256_si128(ordered), _mm256_extracti128_si256(ordered, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), bytes);
}
FASTLLM_INLINE Vec load_f16(const std::byte* p) { return {load_halves(p), load_halves(p + 16)}; }
FASTLLM_INLINE __m256 widen_bf16(const std::byte* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
FASTLLM_INLINE Vec load_bf16(const std::byte* p) { return {widen_bf16(p), widen_bf16(p + 16)}; }

#else

struct Ints {
  int32_t v[16];
};
struct Bytes {
  uint8_t v[64];
};

#define FASTLLM_EACH_LANE(expression)                 \
  Ints r;                                             \
  for (int i = 0; i < 16; ++i) r.v[i] = (expression); \
  return r
FASTLLM_INLINE Ints set1_int(int32_t x) { FASTLLM_EACH_LANE(x); }
FASTLLM_INLINE Ints add(Ints x, Ints y) { FASTLLM_EACH_LANE(x.v[i] + y.v[i]); }
template <int kBits>
FASTLLM_INLINE Ints shift_left(Ints x) {
  FASTLLM_EACH_LANE(x.v[i] * (1 << kBits));
}
template <int kBits>
FASTLLM_INLINE Ints shift_right(Ints x) {
  FASTLLM_EACH_LANE(static_cast<int32_t>(static_cast<uint32_t>(x.v[i]) >> kBits));
}
FASTLLM_INLINE Ints and_bits(Ints x, int32_t bits) { FASTLLM_EACH_LANE(x.v[i] & bits); }
FASTLLM_INLINE Ints madd(Ints x, Ints y) { FASTLLM_EACH_LANE(x.v[i] * y.v[i]); }
FASTLLM_INLINE Ints load_bytes(const uint8_t* p) { FASTLLM_EACH_LANE(p[i]); }
#undef FASTLLM_EACH_LANE
FASTLLM_INLINE Vec to_float(Ints x) {
  Vec r;
  for (int i = 0; i < 16; ++i) r.v[i] = static_cast<float>(x.v[i]);
  return r;
}
FASTLLM_INLINE Bytes load_line(const std::byte* p) {
  Bytes r;
  __builtin_memcpy(r.v, p, sizeof(r.v));
  return r;
}
FASTLLM_INLINE Ints line_as_ints(const std::byte* p) {
  Ints r;
  __builtin_memcpy(r.v, p, sizeof(r.v));
  return r;
}
FASTLLM_INLINE void store_bytes(int8_t* p, Vec x) {
  for (int i = 0; i < 16; ++i) p[i] = static_cast<int8_t>(x.v[i]);
}
FASTLLM_INLINE Vec load_f16(const std::byte* p) {
  Vec r;
  for (int i = 0; i < 16; ++i) r.v[i] = widen_f16(read_u16(p + 2 * i));
  return r;
}
FASTLLM_INLINE Vec load_bf16(const std::byte* p) {
  Vec r;
  for (int i = 0; i < 16; ++i) r.v[i] = widen_bf16(read_u16(p + 2 * i));
  return r;
}

#endif

// 16 scales of a block; scales of whole rows are not there.
FASTLLM_INLINE Vec load_scales(const std::byte* p, ScaleKind kind) {
  return kind == ScaleKind::kRow ? zero() : kind == ScaleKind::kF16 ? load_f16(p) : load_bf16(p);
}

}  // namespace fastllm::cpu::FASTLLM_ISA
