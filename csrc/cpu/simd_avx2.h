// simd.h with two 256-bit registers: lanes 0-7 and 8-15.
#pragma once

#include <immintrin.h>

namespace fastllm::cpu::FASTLLM_ISA {

struct Vec {
  __m256 a, b;
};
struct Mask {
  __m256 a, b;
};

FASTLLM_INLINE Vec set1(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
FASTLLM_INLINE Vec zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
FASTLLM_INLINE Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
FASTLLM_INLINE void store(float* p, Vec x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
FASTLLM_INLINE Vec add(Vec x, Vec y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
FASTLLM_INLINE Vec sub(Vec x, Vec y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
FASTLLM_INLINE Vec mul(Vec x, Vec y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
FASTLLM_INLINE Vec div(Vec x, Vec y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
FASTLLM_INLINE Vec max(Vec x, Vec y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
FASTLLM_INLINE Vec min(Vec x, Vec y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
FASTLLM_INLINE Vec fma(Vec x, Vec y, Vec z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
FASTLLM_INLINE Mask less(Vec x, Vec y) {
  return {_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)};
}
FASTLLM_INLINE Mask is_number(Vec x) {
  return {_mm256_cmp_ps(x.a, x.a, _CMP_ORD_Q), _mm256_cmp_ps(x.b, x.b, _CMP_ORD_Q)};
}
FASTLLM_INLINE Vec select(Mask m, Vec x, Vec y) {
  return {_mm256_blendv_ps(y.a, x.a, m.a), _mm256_blendv_ps(y.b, x.b, m.b)};
}
FASTLLM_INLINE int clamp_lane(int64_t i) { return static_cast<int>(i < 0 ? 0 : i > 16 ? 16 : i); }
FASTLLM_INLINE Mask lanes(int64_t begin, int64_t end) {
  const __m256i lo = _mm256_set1_epi32(clamp_lane(begin) - 1);
  const __m256i hi = _mm256_set1_epi32(clamp_lane(end));
  const __m256i i = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  const __m256i j = _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15);
  return {_mm256_castsi256_ps(_mm256_and_si256(_mm256_cmpgt_epi32(i, lo), _mm256_cmpgt_epi32(hi, i))),
          _mm256_castsi256_ps(_mm256_and_si256(_mm256_cmpgt_epi32(j, lo), _mm256_cmpgt_epi32(hi, j)))};
}
FASTLLM_INLINE uint32_t bits(Mask m) {
  return static_cast<uint32_t>(_mm256_movemask_ps(m.a)) | static_cast<uint32_t>(_mm256_movemask_ps(m.b)) << 8;
}
FASTLLM_INLINE Vec load_n(const float* p, int64_t n) {
  if (n >= 16) return load(p);
  const Mask m = lanes(0, n);
  const __m256 lo = _mm256_maskload_ps(p, _mm256_castps_si256(m.a));
  return {lo, n > 8 ? _mm256_maskload_ps(p + 8, _mm256_castps_si256(m.b)) : _mm256_setzero_ps()};
}
FASTLLM_INLINE void store_n(float* p, Vec x, int64_t n) {
  if (n >= 16) return store(p, x);
  const Mask m = lanes(0, n);
  _mm256_maskstore_ps(p, _mm256_castps_si256(m.a), x.a);
  if (n > 8) _mm256_maskstore_ps(p + 8, _mm256_castps_si256(m.b), x.b);
}
FASTLLM_INLINE __m256 scale2_half(__m256 p, __m256 t) {
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(t), 23)));
}
FASTLLM_INLINE Vec scale2(Vec p, Vec t) { return {scale2_half(p.a, t.a), scale2_half(p.b, t.b)}; }

FASTLLM_INLINE float reduce_add(Vec x) {
  const __m256 s = _mm256_add_ps(x.a, x.b);
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_shuffle_ps(d, d, 1)));
}
FASTLLM_INLINE float reduce_max(Vec x) {
  const __m256 s = _mm256_max_ps(x.a, x.b);
  const __m128 q = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_shuffle_ps(d, d, 1)));
}

struct Doubles {
  __m256d v[4];
};
FASTLLM_INLINE Doubles zero_doubles() { return {}; }
FASTLLM_INLINE __m256d widen_low(__m256 x) { return _mm256_cvtps_pd(_mm256_castps256_ps128(x)); }
FASTLLM_INLINE __m256d widen_high(__m256 x) { return _mm256_cvtps_pd(_mm256_extractf128_ps(x, 1)); }
FASTLLM_INLINE Doubles add(Doubles x, Vec y) {
  return {{_mm256_add_pd(x.v[0], widen_low(y.a)), _mm256_add_pd(x.v[1], widen_high(y.a)),
           _mm256_add_pd(x.v[2], widen_low(y.b)), _mm256_add_pd(x.v[3], widen_high(y.b))}};
}
FASTLLM_INLINE double reduce_add(Doubles x) {
  const __m256d low = _mm256_add_pd(x.v[0], x.v[2]);
  const __m256d high = _mm256_add_pd(x.v[1], x.v[3]);
  const __m256d q = _mm256_add_pd(low, high);
  const __m128d d = _mm_add_pd(_mm256_castpd256_pd128(q), _mm256_extractf128_pd(q, 1));
  return _mm_cvtsd_f64(_mm_add_sd(d, _mm_unpackhi_pd(d, d)));
}

FASTLLM_INLINE __m256i load_bits(const std::byte* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
FASTLLM_INLINE __m256 load_floats(const std::byte* p) { return _mm256_loadu_ps(reinterpret_cast<const float*>(p)); }
FASTLLM_INLINE __m256 load_halves(const std::byte* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
FASTLLM_INLINE void load_pair(F32, const std::byte* p, Vec& x, Vec& y) {
  x = {load_floats(p), load_floats(p + 32)};
  y = {load_floats(p + 64), load_floats(p + 96)};
}
FASTLLM_INLINE void load_pair(BF16, const std::byte* p, Vec& x, Vec& y) {
  const __m256i lo = load_bits(p);
  const __m256i hi = load_bits(p + 32);
  const __m256i odd = _mm256_set1_epi32(static_cast<int>(0xffff0000u));
  x = {_mm256_castsi256_ps(_mm256_slli_epi32(lo, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(hi, 16))};
  y = {_mm256_castsi256_ps(_mm256_and_si256(lo, odd)), _mm256_castsi256_ps(_mm256_and_si256(hi, odd))};
}
FASTLLM_INLINE void load_pair(F16, const std::byte* p, Vec& x, Vec& y) {
  x = {load_halves(p), load_halves(p + 16)};
  y = {load_halves(p + 32), load_halves(p + 48)};
}

// Round to nearest even in integers; NaN stays NaN, quietened.
FASTLLM_INLINE __m256i round_bf16(__m256 x) {
  const __m256i u = _mm256_castps_si256(x);
  const __m256i lsb = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(u, _mm256_add_epi32(lsb, _mm256_set1_epi32(0x7fff))), 16);
  const __m256i nan = _mm256_or_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(0x40));
  return _mm256_blendv_epi8(rounded, nan, _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q)));
}
FASTLLM_INLINE void store_bf16(uint16_t* p, Vec x) {
  const __m256i packed = _mm256_packus_epi32(round_bf16(x.a), round_bf16(x.b));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}
FASTLLM_INLINE void store_f16(uint16_t* p, Vec x) {
  constexpr int kNearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph(x.a, kNearest));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p + 8), _mm256_cvtps_ph(x.b, kNearest));
}

}  // namespace fastllm::cpu::FASTLLM_ISA
