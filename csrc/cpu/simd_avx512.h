// simd.h with one 512-bit register.
#pragma once

#include <immintrin.h>

namespace fastllm::cpu::FASTLLM_ISA {

struct Vec {
  __m512 v;
};
struct Mask {
  __mmask16 m;
};

FASTLLM_INLINE Vec set1(float x) { return {_mm512_set1_ps(x)}; }
FASTLLM_INLINE Vec zero() { return {_mm512_setzero_ps()}; }
FASTLLM_INLINE Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
FASTLLM_INLINE void store(float* p, Vec x) { _mm512_storeu_ps(p, x.v); }
FASTLLM_INLINE Vec add(Vec x, Vec y) { return {_mm512_add_ps(x.v, y.v)}; }
FASTLLM_INLINE Vec sub(Vec x, Vec y) { return {_mm512_sub_ps(x.v, y.v)}; }
FASTLLM_INLINE Vec mul(Vec x, Vec y) { return {_mm512_mul_ps(x.v, y.v)}; }
FASTLLM_INLINE Vec div(Vec x, Vec y) { return {_mm512_div_ps(x.v, y.v)}; }
FASTLLM_INLINE Vec max(Vec x, Vec y) { return {_mm512_maskz_max_ps(0xffff, x.v, y.v)}; }
FASTLLM_INLINE Vec min(Vec x, Vec y) { return {_mm512_maskz_min_ps(0xffff, x.v, y.v)}; }
FASTLLM_INLINE Vec fma(Vec x, Vec y, Vec z) { return {_mm512_fmadd_ps(x.v, y.v, z.v)}; }
FASTLLM_INLINE Mask less(Vec x, Vec y) { return {_mm512_cmp_ps_mask(x.v, y.v, _CMP_LT_OQ)}; }
FASTLLM_INLINE Mask is_number(Vec x) { return {_mm512_cmp_ps_mask(x.v, x.v, _CMP_ORD_Q)}; }
FASTLLM_INLINE Vec select(Mask m, Vec x, Vec y) { return {_mm512_mask_blend_ps(m.m, y.v, x.v)}; }
FASTLLM_INLINE Mask lanes(int64_t begin, int64_t end) {
  const uint32_t below_begin = begin <= 0 ? 0u : begin >= 16 ? 0xffffu : (1u << begin) - 1;
  const uint32_t below_end = end <= 0 ? 0u : end >= 16 ? 0xffffu : (1u << end) - 1;
  return {static_cast<__mmask16>(below_end & ~below_begin)};
}
FASTLLM_INLINE uint32_t bits(Mask m) { return m.m; }
FASTLLM_INLINE Vec load_n(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(lanes(0, n).m, p)}; }
FASTLLM_INLINE void store_n(float* p, Vec x, int64_t n) { _mm512_mask_storeu_ps(p, lanes(0, n).m, x.v); }
FASTLLM_INLINE Vec scale2(Vec p, Vec t) {
  const __m512i exponent = _mm512_maskz_slli_epi32(0xffff, _mm512_castps_si512(t.v), 23);
  return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(p.v), exponent))};
}

// The zero-masked forms here and below are those that GCC 12 implements without an uninitialised operand.
template <int kHalf>
FASTLLM_INLINE __m256 half_of(__m512 x) {
  return _mm512_maskz_extractf32x8_ps(0xff, x, kHalf);
}
FASTLLM_INLINE float reduce_add(Vec x) {
  const __m256 s = _mm256_add_ps(half_of<0>(x.v), half_of<1>(x.v));
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
}
FASTLLM_INLINE float reduce_max(Vec x) {
  const __m256 s = _mm256_max_ps(half_of<0>(x.v), half_of<1>(x.v));
  const __m128 q = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_shuffle_ps(d, d, 1)));
}

struct Doubles {
  __m512d low, high;
};
FASTLLM_INLINE Doubles zero_doubles() { return {_mm512_setzero_pd(), _mm512_setzero_pd()}; }
FASTLLM_INLINE Doubles add(Doubles x, Vec y) {
  return {_mm512_add_pd(x.low, _mm512_maskz_cvtps_pd(0xff, half_of<0>(y.v))),
          _mm512_add_pd(x.high, _mm512_maskz_cvtps_pd(0xff, half_of<1>(y.v)))};
}
FASTLLM_INLINE double reduce_add(Doubles x) {
  const __m512d s = _mm512_add_pd(x.low, x.high);
  const __m256d q = _mm256_add_pd(_mm512_maskz_extractf64x4_pd(0xf, s, 0), _mm512_maskz_extractf64x4_pd(0xf, s, 1));
  const __m128d d = _mm_add_pd(_mm256_castpd256_pd128(q), _mm256_extractf128_pd(q, 1));
  return _mm_cvtsd_f64(_mm_add_sd(d, _mm_unpackhi_pd(d, d)));
}

FASTLLM_INLINE __m512i load_bits(const std::byte* p) { return _mm512_loadu_si512(p); }
FASTLLM_INLINE __m512 load_halves(const std::byte* p) {
  return _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
FASTLLM_INLINE void load_pair(F32, const std::byte* p, Vec& x, Vec& y) {
  x = {_mm512_loadu_ps(p)};
  y = {_mm512_loadu_ps(p + 64)};
}
FASTLLM_INLINE void load_pair(BF16, const std::byte* p, Vec& x, Vec& y) {
  const __m512i both = load_bits(p);
  x = {_mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, both, 16))};
  y = {_mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000u))))};
}
FASTLLM_INLINE void load_pair(F16, const std::byte* p, Vec& x, Vec& y) {
  x = {load_halves(p)};
  y = {load_halves(p + 32)};
}

// Round to nearest even in integers; NaN stays NaN, quietened.
FASTLLM_INLINE void store_bf16(uint16_t* p, Vec x) {
  const __m512i u = _mm512_castps_si512(x.v);
  const __m512i high = _mm512_maskz_srli_epi32(0xffff, u, 16);
  const __m512i lsb = _mm512_and_si512(high, _mm512_set1_epi32(1));
  const __m512i sum = _mm512_add_epi32(u, _mm512_add_epi32(lsb, _mm512_set1_epi32(0x7fff)));
  const __m512i rounded = _mm512_maskz_srli_epi32(0xffff, sum, 16);
  const __m512i nan = _mm512_or_si512(high, _mm512_set1_epi32(0x40));
  const __m512i bits = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q), nan);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtepi32_epi16(0xffff, bits));
}
FASTLLM_INLINE void store_f16(uint16_t* p, Vec x) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtps_ph(0xffff, x.v, kNearest));
}

}  // namespace fastllm::cpu::FASTLLM_ISA
