// Exact dot products of unsigned codes with signed activations, 16 output rows a vector.
//
// dot_group<Codes, kRows, kCount, kFirst>(a, panels, num_quads, acc): acc[m][h] += factor * sum over the quads of
// code * a, for kRows rows of activations laid out [quad][row][4] and kCount half panels of which the first has parity
// kFirst, where code and factor are as the level's instruction takes them (kOffset, kHighFactor).
//
// dpbusd (VNNI) takes codes up to 255. Without it products are summed in pairs of 16 bits, which must not saturate:
// int4 codes reach 8 * 2 * 15 * 127 = 30480 after eight quads; int8 codes are taken as sign and magnitude, 2 * 128 *
// 127 = 32512, and so count from 128 (kCodeOffset).
#pragma once

#include "cpu/simd_int.h"

// Before a loop over an array of vectors: unrolled early enough, the array lives in registers. (Plain loops over lanes
// would only grow.)
#if defined(__AVX2__)
#define FASTLLM_UNROLL _Pragma("GCC unroll 16")
#else
#define FASTLLM_UNROLL
#endif

namespace fastllm::cpu::FASTLLM_ISA {

#if defined(__AVX512VNNI__) || !defined(__AVX2__)
#define FASTLLM_DIRECT_DOT 1
#endif

// kHighFactor: what sums of high nibbles are multiplied by. kOffset: what is subtracted from every code.
struct Int4 {
  static constexpr int64_t kLineBytes = 64;  // of one quad: both halves share its bytes
  static constexpr int32_t kZero = 8;        // of symmetric weights
  static constexpr int32_t kOffset = 0;
#ifdef FASTLLM_DIRECT_DOT
  static constexpr int kHighBits = 4;
#else
  static constexpr int kHighBits = 0;
#endif
  static constexpr int32_t kHighFactor = 1 << kHighBits;
};
struct Int8 {
  static constexpr int64_t kLineBytes = 128;
  static constexpr int32_t kZero = 128;
#ifdef FASTLLM_DIRECT_DOT
  static constexpr int32_t kOffset = 0;
#else
  static constexpr int32_t kOffset = 128;
#endif
  static constexpr int kHighBits = 0;
  static constexpr int32_t kHighFactor = 1;
};

#if defined(__AVX512VNNI__)

FASTLLM_INLINE Bytes load_codes(Int4, const std::byte* p, int parity) {
  const __m512i mask = parity == 0 ? _mm512_set1_epi8(0x0f) : _mm512_set1_epi8(static_cast<char>(0xf0));
  return {_mm512_and_si512(_mm512_loadu_si512(p), mask)};
}
FASTLLM_INLINE Bytes load_codes(Int8, const std::byte* p, int parity) { return {_mm512_loadu_si512(p + 64 * parity)}; }
FASTLLM_INLINE Ints dot(Ints acc, Bytes codes, Ints quad) {
  return as_ints(_mm512_dpbusd_epi32(bits_of(acc), codes.v, bits_of(quad)));
}

#elif !defined(__AVX2__)

FASTLLM_INLINE Bytes load_codes(Int4, const std::byte* p, int parity) {
  Bytes r = load_line(p);
  for (int i = 0; i < 64; ++i) r.v[i] &= parity == 0 ? 0x0f : 0xf0;
  return r;
}
FASTLLM_INLINE Bytes load_codes(Int8, const std::byte* p, int parity) { return load_line(p + 64 * parity); }
FASTLLM_INLINE Ints dot(Ints acc, Bytes codes, Ints quad) {
  int8_t a[4];
  __builtin_memcpy(a, quad.v, sizeof(a));
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 4; ++j) acc.v[i] += codes.v[4 * i + j] * a[j];
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
  // Unrolled, so that the branch at the end of a group is predicted: groups have 8, 16 or 32 quads.
  constexpr int kUnroll = 4;
  int64_t begin = 0;
  do {
    FASTLLM_UNROLL for (int i = 0; i < kUnroll; ++i) {
      const int64_t q = begin + i;
      Bytes codes[kCount];
      FASTLLM_UNROLL for (int h = 0; h < kCount; ++h) {
        codes[h] = load_codes(Codes{}, panels[h / 2] + q * Codes::kLineBytes, (kFirst + h) % 2);
      }
      FASTLLM_UNROLL for (int m = 0; m < kRows; ++m) {
        const Ints quad = load_quad(a + 4 * (q * kRows + m));
        FASTLLM_UNROLL for (int h = 0; h < kCount; ++h) acc[m][h] = dot(acc[m][h], codes[h], quad);
      }
    }
    begin += kUnroll;
  } while (begin < num_quads);
}

#else

// Sums of pairs of products, in 16 bits (the vector type: see Ints).
#if defined(__AVX512F__)
typedef int16_t ShortVector __attribute__((vector_size(64)));
struct Shorts {
  ShortVector v;
};
FASTLLM_INLINE Bytes nibbles(Bytes x, int parity) {
  const __m512i shifted = parity == 0 ? x.v : _mm512_maskz_srli_epi16(~__mmask32{0}, x.v, 4);
  return {_mm512_and_si512(shifted, _mm512_set1_epi8(0x0f))};
}
FASTLLM_INLINE Shorts add(Shorts x, Shorts y) { return {x.v + y.v}; }
FASTLLM_INLINE Shorts multiply_pairs(Bytes codes, Bytes a) {
  return {reinterpret_cast<ShortVector>(_mm512_maddubs_epi16(codes.v, a.v))};
}
FASTLLM_INLINE Ints sum_pairs(Shorts x) {
  return as_ints(_mm512_madd_epi16(reinterpret_cast<__m512i>(x.v), _mm512_set1_epi16(1)));
}
FASTLLM_INLINE Bytes as_line(Ints x) { return {bits_of(x)}; }
struct SignedCodes {
  Bytes magnitude;
  __mmask64 is_negative;
};
FASTLLM_INLINE SignedCodes load_signed(const std::byte* p) {
  const __m512i x = _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(static_cast<char>(0x80)));
  return {{_mm512_maskz_abs_epi8(~__mmask64{0}, x)}, _mm512_movepi8_mask(x)};
}
FASTLLM_INLINE Shorts multiply_signed(const SignedCodes& codes, Bytes a) {
  return multiply_pairs(codes.magnitude, {_mm512_mask_sub_epi8(a.v, codes.is_negative, _mm512_setzero_si512(), a.v)});
}
#else
typedef int16_t ShortVector __attribute__((vector_size(32)));
struct Shorts {
  ShortVector a, b;
};
FASTLLM_INLINE Bytes nibbles(Bytes x, int parity) {
  const __m256i mask = _mm256_set1_epi8(0x0f);
  if (parity == 0) return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
  return {_mm256_and_si256(_mm256_srli_epi16(x.a, 4), mask), _mm256_and_si256(_mm256_srli_epi16(x.b, 4), mask)};
}
FASTLLM_INLINE Shorts add(Shorts x, Shorts y) { return {x.a + y.a, x.b + y.b}; }
FASTLLM_INLINE Shorts multiply_pairs(Bytes codes, Bytes a) {
  return {reinterpret_cast<ShortVector>(_mm256_maddubs_epi16(codes.a, a.a)),
          reinterpret_cast<ShortVector>(_mm256_maddubs_epi16(codes.b, a.b))};
}
FASTLLM_INLINE Ints sum_pairs(Shorts x) {
  const __m256i ones = _mm256_set1_epi16(1);
  return as_ints(_mm256_madd_epi16(reinterpret_cast<__m256i>(x.a), ones),
                 _mm256_madd_epi16(reinterpret_cast<__m256i>(x.b), ones));
}
FASTLLM_INLINE Bytes as_line(Ints x) { return {bits_of(x.a), bits_of(x.b)}; }
struct SignedCodes {
  Bytes code, magnitude;
};
FASTLLM_INLINE SignedCodes load_signed(const std::byte* p) {
  const __m256i flip = _mm256_set1_epi8(static_cast<char>(0x80));
  const Bytes x = load_line(p);
  const Bytes code = {_mm256_xor_si256(x.a, flip), _mm256_xor_si256(x.b, flip)};
  return {code, {_mm256_abs_epi8(code.a), _mm256_abs_epi8(code.b)}};
}
FASTLLM_INLINE Shorts multiply_signed(const SignedCodes& codes, Bytes a) {
  return multiply_pairs(codes.magnitude, {_mm256_sign_epi8(a.a, codes.code.a), _mm256_sign_epi8(a.b, codes.code.b)});
}
#endif

template <class Codes, int kRows, int kCount, int kFirst>
FASTLLM_INLINE void dot_group(const std::byte* a, const std::byte* const (&panels)[(kCount + 1) / 2], int64_t num_quads,
                              Ints (&acc)[kRows][kCount]) {
  if constexpr (Codes::kLineBytes == 64) {
    constexpr int64_t kQuads = 8;  // and every group is a multiple of eight quads
    for (int64_t begin = 0; begin < num_quads; begin += kQuads) {
      Shorts sums[kRows][kCount];
      FASTLLM_UNROLL for (int m = 0; m < kRows; ++m) {
        FASTLLM_UNROLL for (int h = 0; h < kCount; ++h) sums[m][h] = Shorts{};
      }
      for (int64_t q = begin; q < begin + kQuads; ++q) {
        Bytes codes[kCount];
        FASTLLM_UNROLL for (int h = 0; h < kCount; ++h) {
          codes[h] = nibbles(load_line(panels[h / 2] + q * Codes::kLineBytes), (kFirst + h) % 2);
        }
        FASTLLM_UNROLL for (int m = 0; m < kRows; ++m) {
          const Bytes quad = as_line(load_quad(a + 4 * (q * kRows + m)));
          FASTLLM_UNROLL for (int h = 0; h < kCount; ++h) sums[m][h] = add(sums[m][h], multiply_pairs(codes[h], quad));
        }
      }
      FASTLLM_UNROLL for (int m = 0; m < kRows; ++m) {
        FASTLLM_UNROLL for (int h = 0; h < kCount; ++h) acc[m][h] = add(acc[m][h], sum_pairs(sums[m][h]));
      }
    }
  } else {
    for (int64_t q = 0; q < num_quads; ++q) {
      SignedCodes codes[kCount];
      FASTLLM_UNROLL for (int h = 0; h < kCount; ++h) {
        codes[h] = load_signed(panels[h / 2] + q * Codes::kLineBytes + 64 * ((kFirst + h) % 2));
      }
      FASTLLM_UNROLL for (int m = 0; m < kRows; ++m) {
        const Bytes quad = as_line(load_quad(a + 4 * (q * kRows + m)));
        FASTLLM_UNROLL for (int h = 0; h < kCount; ++h) acc[m][h] =
            add(acc[m][h], sum_pairs(multiply_signed(codes[h], quad)));
      }
    }
  }
}

#endif

}  // namespace fastllm::cpu::FASTLLM_ISA
