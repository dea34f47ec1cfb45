// Exact dot products of unsigned codes with signed activations, 16 output rows a vector.
//
// dot_group<Codes, kRows, kCount, kFirst>(a, panels, num_quads, acc): acc[m][h] += factor * sum over the quads of
// code * a, for kRows rows of activations laid out [quad][row][4] and kCount half panels of which the first has parity
// kFirst. Codes::factor(half): what the level's instruction leaves in the sum, a power of two (see HighFactor).
//
// dpbusd (VNNI) takes codes up to 255. Without it products are summed in pairs of 16 bits, which must not saturate:
// int4 codes reach 8 * 2 * 15 * 127 = 30480 after eight quads; int8 codes are taken as sign and magnitude, 2 * 128 *
// 127 = 32512, and so count from 128 (kCodeOffset).
#pragma once

#include "cpu/simd_int.h"

namespace fastllm::cpu::FASTLLM_ISA {

struct Int4 {
  static constexpr int64_t kLineBytes = 64;  // of one quad: both halves share its bytes
  static constexpr int kZeroBits = 3;        // zero of symmetric weights: 2^3
};
struct Int8 {
  static constexpr int64_t kLineBytes = 128;
  static constexpr int kZeroBits = 7;
};

#if defined(__AVX512VNNI__) || !defined(__AVX2__)
#define FASTLLM_DIRECT_DOT 1
#endif

#ifdef FASTLLM_DIRECT_DOT

// The high nibble is used where it lies: 16 * code.
constexpr int kHighBits = 4;
constexpr int kInt8OffsetBits = 0;
#else
constexpr int kHighBits = 0;
constexpr int kInt8OffsetBits = 7;
#endif

#if defined(__AVX512VNNI__)

FASTLLM_INLINE Bytes load_codes(Int4, const std::byte* p, int parity) {
  const __m512i mask = parity == 0 ? _mm512_set1_epi8(0x0f) : _mm512_set1_epi8(static_cast<char>(0xf0));
  return {_mm512_and_si512(_mm512_loadu_si512(p), mask)};
}
FASTLLM_INLINE Bytes load_codes(Int8, const std::byte* p, int parity) { return {_mm512_loadu_si512(p + 64 * parity)}; }
FASTLLM_INLINE Ints dot(Ints acc, Bytes codes, Ints a) { return {_mm512_dpbusd_epi32(acc.v, codes.v, a.v)}; }

#elif !defined(__AVX2__)

FASTLLM_INLINE Bytes load_codes(Int4, const std::byte* p, int parity) {
  Bytes r = load_line(p);
  for (int i = 0; i < 64; ++i) r.v[i] &= parity == 0 ? 0x0f : 0xf0;
  return r;
}
FASTLLM_INLINE Bytes load_codes(Int8, const std::byte* p, int parity) { return load_line(p + 64 * parity); }
FASTLLM_INLINE Ints dot(Ints acc, Bytes codes, Ints a) {
  int8_t quad[4];
  __builtin_memcpy(quad, a.v, 4);
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 4; ++j) acc.v[i] += codes.v[4 * i + j] * quad[j];
  }
  return acc;
}

#endif

FASTLLM_INLINE Ints load_quad(const std::byte* p) {
  int32_t quad;
  __builtin_memcpy(&quad, p, sizeof(quad));
  return set1_int(quad);
}

#ifdef FASTLLM_DIRECT_DOT

template <class Codes, int kRows, int kCount, int kFirst>
FASTLLM_INLINE void dot_group(const std::byte* a, const std::byte* const (&panels)[(kCount + 1) / 2], int64_t num_quads,
                              Ints (&acc)[kRows][kCount]) {
  for (int64_t q = 0; q < num_quads; ++q) {
    Bytes codes[kCount];
    for (int h = 0; h < kCount; ++h) {
      codes[h] = load_codes(Codes{}, panels[h / 2] + q * Codes::kLineBytes, (kFirst + h) % 2);
    }
    for (int m = 0; m < kRows; ++m) {
      const Ints quad = load_quad(a + 4 * (q * kRows + m));
      for (int h = 0; h < kCount; ++h) acc[m][h] = dot(acc[m][h], codes[h], quad);
    }
  }
}

#else

#if defined(__AVX512F__)
FASTLLM_INLINE Bytes nibbles(Bytes x, int parity) {
  const __m512i shifted = parity == 0 ? x.v : _mm512_maskz_srli_epi16(~__mmask32{0}, x.v, 4);
  return {_mm512_and_si512(shifted, _mm512_set1_epi8(0x0f))};
}
FASTLLM_INLINE Bytes add_shorts(Bytes x, Bytes y) { return {_mm512_add_epi16(x.v, y.v)}; }
FASTLLM_INLINE Bytes multiply_pairs(Bytes codes, Bytes a) { return {_mm512_maddubs_epi16(codes.v, a.v)}; }
FASTLLM_INLINE Ints sum_shorts(Bytes x) { return {_mm512_madd_epi16(x.v, _mm512_set1_epi16(1))}; }
FASTLLM_INLINE Bytes zero_bytes() { return {_mm512_setzero_si512()}; }
FASTLLM_INLINE Bytes as_line(Ints x) { return {x.v}; }
struct SignedCodes {
  Bytes magnitude;
  __mmask64 is_negative;
};
FASTLLM_INLINE SignedCodes load_signed(const std::byte* p) {
  const __m512i x = _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(static_cast<char>(0x80)));
  return {{_mm512_maskz_abs_epi8(~__mmask64{0}, x)}, _mm512_movepi8_mask(x)};
}
FASTLLM_INLINE Bytes multiply_signed(const SignedCodes& codes, Bytes a) {
  return multiply_pairs(codes.magnitude, {_mm512_mask_sub_epi8(a.v, codes.is_negative, _mm512_setzero_si512(), a.v)});
}
#else
FASTLLM_INLINE Bytes nibbles(Bytes x, int parity) {
  const __m256i mask = _mm256_set1_epi8(0x0f);
  if (parity == 0) return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
  return {_mm256_and_si256(_mm256_srli_epi16(x.a, 4), mask), _mm256_and_si256(_mm256_srli_epi16(x.b, 4), mask)};
}
FASTLLM_INLINE Bytes add_shorts(Bytes x, Bytes y) { return {_mm256_add_epi16(x.a, y.a), _mm256_add_epi16(x.b, y.b)}; }
FASTLLM_INLINE Bytes multiply_pairs(Bytes codes, Bytes a) {
  return {_mm256_maddubs_epi16(codes.a, a.a), _mm256_maddubs_epi16(codes.b, a.b)};
}
FASTLLM_INLINE Ints sum_shorts(Bytes x) {
  const __m256i ones = _mm256_set1_epi16(1);
  return {_mm256_madd_epi16(x.a, ones), _mm256_madd_epi16(x.b, ones)};
}
FASTLLM_INLINE Bytes zero_bytes() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
FASTLLM_INLINE Bytes as_line(Ints x) { return {x.a, x.b}; }
struct SignedCodes {
  Bytes code, magnitude;
};
FASTLLM_INLINE SignedCodes load_signed(const std::byte* p) {
  const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x80));
  const Bytes x = load_line(p);
  const Bytes code = {_mm256_xor_si256(x.a, flip), _mm256_xor_si256(x.b, flip)};
  return {code, {_mm256_abs_epi8(code.a), _mm256_abs_epi8(code.b)}};
}
FASTLLM_INLINE Bytes multiply_signed(const SignedCodes& codes, Bytes a) {
  return multiply_pairs(codes.magnitude, {_mm256_sign_epi8(a.a, codes.code.a), _mm256_sign_epi8(a.b, codes.code.b)});
}
#endif

template <class Codes, int kRows, int kCount, int kFirst>
FASTLLM_INLINE void dot_group(const std::byte* a, const std::byte* const (&panels)[(kCount + 1) / 2], int64_t num_quads,
                              Ints (&acc)[kRows][kCount]) {
  if constexpr (Codes::kLineBytes == 64) {
    constexpr int64_t kQuads = 8;  // and every group is a multiple of eight quads
    for (int64_t begin = 0; begin < num_quads; begin += kQuads) {
      Bytes sums[kRows][kCount];
      for (int m = 0; m < kRows; ++m) {
        for (int h = 0; h < kCount; ++h) sums[m][h] = zero_bytes();
      }
      for (int64_t q = begin; q < begin + kQuads; ++q) {
        Bytes codes[kCount];
        for (int h = 0; h < kCount; ++h) {
          codes[h] = nibbles(load_line(panels[h / 2] + q * Codes::kLineBytes), (kFirst + h) % 2);
        }
        for (int m = 0; m < kRows; ++m) {
          const Bytes quad = as_line(load_quad(a + 4 * (q * kRows + m)));
          for (int h = 0; h < kCount; ++h) sums[m][h] = add_shorts(sums[m][h], multiply_pairs(codes[h], quad));
        }
      }
      for (int m = 0; m < kRows; ++m) {
        for (int h = 0; h < kCount; ++h) acc[m][h] = add(acc[m][h], sum_shorts(sums[m][h]));
      }
    }
  } else {
    for (int64_t q = 0; q < num_quads; ++q) {
      SignedCodes codes[kCount];
      for (int h = 0; h < kCount; ++h) {
        codes[h] = load_signed(panels[h / 2] + q * Codes::kLineBytes + 64 * ((kFirst + h) % 2));
      }
      for (int m = 0; m < kRows; ++m) {
        const Bytes quad = as_line(load_quad(a + 4 * (q * kRows + m)));
        for (int h = 0; h < kCount; ++h) acc[m][h] = add(acc[m][h], sum_shorts(multiply_signed(codes[h], quad)));
      }
    }
  }
}

#endif

}  // namespace fastllm::cpu::FASTLLM_ISA
