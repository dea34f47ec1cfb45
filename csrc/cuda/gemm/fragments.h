// From packed weights to the A operand of the tensor core, one struct per format.
//
// Codes become exact small floats (of integers code - zero), never scaled: the scale multiplies the sum of a group once
// (gemm.cu). bf16 holds integers up to 256 exactly, so no code is rounded.
//   int4: 0x4300 | code is the bf16 128 + code; one packed subtraction of 128 + zero.
//   int8: 0x4b000000 | code is the float 2^23 + code; subtract 2^23 + zero, then round (exactly) to bf16.
//   fp8:  a shift and one packed multiplication; bf16 has its 3 bits of mantissa and its exponents.
#pragma once

#include "cuda/fl/gpu.h"
#include "cuda/gemm/weight_tiles.h"

namespace fastllm::cuda {

using Word = fl::Vec<uint32_t, 4>;  // 16 bytes

// Zeros of the two rows of a lane, g and g + 8.
struct ZeroPair {
  uint32_t low, high;
};

template <bool kIsHalf>
struct FloatFragments {
  static constexpr WeightFormat kFormat = kIsHalf ? WeightFormat::kF16 : WeightFormat::kBF16;
  static constexpr bool kHasScales = false;
  static constexpr int kWords = words_per_chunk(kFormat);

  static __device__ void load(uint32_t (&a)[4], const Word (&words)[kWords], int step, ZeroPair) {
    for (int i = 0; i < 4; ++i) a[i] = words[step][i];
  }
  static __device__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (kIsHalf) {
      fl::mma_f16(d, a, b);
    } else {
      fl::mma_bf16(d, a, b);
    }
  }
};

struct Int4Fragments {
  static constexpr WeightFormat kFormat = WeightFormat::kInt4;
  static constexpr bool kHasScales = true;
  static constexpr int kWords = words_per_chunk(kFormat);
  static constexpr uint32_t kSymmetricZero = 8;

  static __device__ ZeroPair zeros(uint32_t low, uint32_t high) {
    return {(0x4300u + low) * 0x10001u, (0x4300u + high) * 0x10001u};
  }
  static __device__ void load(uint32_t (&a)[4], const Word (&words)[kWords], int step, ZeroPair zero) {
    const uint32_t codes = words[0][step];
    for (int i = 0; i < 4; ++i) {
      const uint32_t biased = ((codes >> (4 * i)) & 0x000f000fu) | 0x43004300u;
      a[i] = fl::sub_bf16x2(biased, i % 2 == 0 ? zero.low : zero.high);
    }
  }
  static __device__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { fl::mma_bf16(d, a, b); }
};

struct Int8Fragments {
  static constexpr WeightFormat kFormat = WeightFormat::kInt8;
  static constexpr bool kHasScales = true;
  static constexpr int kWords = words_per_chunk(kFormat);
  static constexpr uint32_t kSymmetricZero = 128;

  static __device__ ZeroPair zeros(uint32_t low, uint32_t high) { return {0x4b000000u + low, 0x4b000000u + high}; }
  static __device__ void load(uint32_t (&a)[4], const Word (&words)[kWords], int step, ZeroPair zero) {
    for (int i = 0; i < 4; ++i) {
      const uint32_t codes = words[step / 2][step % 2 * 2 + i / 2];
      const float z = fl::bit_cast<float>(i % 2 == 0 ? zero.low : zero.high);
      const int byte = i % 2 * 2;
      const float first = fl::bit_cast<float>(fl::prmt(codes, 0x4b000000u, 0x7650u + static_cast<uint32_t>(byte)));
      const float second = fl::bit_cast<float>(fl::prmt(codes, 0x4b000000u, 0x7651u + static_cast<uint32_t>(byte)));
      a[i] = fl::pack_bf16x2(first - z, second - z);
    }
  }
  static __device__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { fl::mma_bf16(d, a, b); }
};

struct Fp8Fragments {
  static constexpr WeightFormat kFormat = WeightFormat::kE4M3;
  static constexpr bool kHasScales = true;
  static constexpr int kWords = words_per_chunk(kFormat);
  static constexpr uint32_t kSymmetricZero = 0;

  static __device__ ZeroPair zeros(uint32_t, uint32_t) { return {}; }
  static __device__ void load(uint32_t (&a)[4], const Word (&words)[kWords], int step, ZeroPair) {
    for (int i = 0; i < 2; ++i) {
      const uint32_t codes = words[step / 2][step % 2 * 2 + i];
      a[2 * i] = fl::bf16x2_from_e4m3_bytes<0, 1>(codes);
      a[2 * i + 1] = fl::bf16x2_from_e4m3_bytes<2, 3>(codes);
    }
  }
  static __device__ void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { fl::mma_bf16(d, a, b); }
};

}  // namespace fastllm::cuda
