// Products of float activations with pair blocks (kernels.h), and how rows are prepared for them: [k][rows of the
// tile], K padded to even; rounded to bf16 where the level has bf16 dot products: [k / 2][rows][2].
#pragma once

#include "cpu/linear_tile.h"
#include "cpu/simd_int.h"

namespace fastllm::cpu::FASTLLM_ISA {

// Float activations: two fused multiply-adds per pair, the even k first.
template <class E>
struct Widened {
  static constexpr Elem kElem = E::kElem;
  using Activation = float;
  static constexpr int64_t kPairBytes = pair_block_bytes(kElem);
  static constexpr bool kIsRounded = false;

  template <int kRows, int kHalves>
  static FASTLLM_INLINE void step(const float* a, const std::byte* const (&w)[kHalves], int64_t offset,
                                  Vec (&acc)[kRows][kHalves]) {
    Vec even[kHalves], odd[kHalves];
    for (int h = 0; h < kHalves; ++h) load_pair(E{}, w[h] + offset, even[h], odd[h]);
    for (int m = 0; m < kRows; ++m) {
      const Vec x = set1(a[m]);
      for (int h = 0; h < kHalves; ++h) acc[m][h] = fma(x, even[h], acc[m][h]);
    }
    for (int m = 0; m < kRows; ++m) {
      const Vec x = set1(a[kRows + m]);
      for (int h = 0; h < kHalves; ++h) acc[m][h] = fma(x, odd[h], acc[m][h]);
    }
  }
};

#if defined(__AVX512BF16__)
struct Bf16Dot {
  static constexpr Elem kElem = Elem::kBF16;
  using Activation = uint16_t;
  static constexpr int64_t kPairBytes = pair_block_bytes(kElem);
  static constexpr bool kIsRounded = true;

  template <int kRows, int kHalves>
  static FASTLLM_INLINE void step(const uint16_t* a, const std::byte* const (&w)[kHalves], int64_t offset,
                                  Vec (&acc)[kRows][kHalves]) {
    __m512i weights[kHalves];
    for (int h = 0; h < kHalves; ++h) weights[h] = load_bits(w[h] + offset);
    for (int m = 0; m < kRows; ++m) {
      int32_t pair;
      __builtin_memcpy(&pair, a + 2 * m, sizeof(pair));
      const __m512i x = _mm512_set1_epi32(pair);
      for (int h = 0; h < kHalves; ++h) {
        acc[m][h].v =
            _mm512_dpbf16_ps(acc[m][h].v, reinterpret_cast<__m512bh>(weights[h]), reinterpret_cast<__m512bh>(x));
      }
    }
  }
};
using ForBf16 = Bf16Dot;
#else
using ForBf16 = Widened<BF16>;
#endif

// kRoundsToBf16: floats that are exact in bf16, for levels without bf16 dot products.
template <class Dot, int kRowTile, bool kRoundsToBf16 = Dot::kIsRounded>
void pack_float_rows(const PackRowsJob& job, int64_t tile_begin, int64_t tile_end) {
  using A = typename Dot::Activation;
  const int64_t padded_k = (job.k + 1) / 2 * 2;
  const int64_t columns = job.k_end - job.k_begin;
  const int64_t padded_columns = (columns + 1) / 2 * 2;
  for (int64_t t = tile_begin; t < tile_end; ++t) {
    const Tile tile = tile_at<kRowTile>(job.num_rows, t);
    A* out = reinterpret_cast<A*>(job.packed) + tile.begin * padded_k + job.k_begin * tile.rows;
    for (int64_t m = 0; m < tile.rows; ++m) {
      const float* x = row_of(job, tile.begin + m);
      for (int64_t k = 0; k < padded_columns; k += 16) {
        const int64_t n = padded_columns - k < 16 ? padded_columns - k : 16;
        Vec v = load_n(x + k, columns - k);
        uint16_t rounded[16];
        if constexpr (kRoundsToBf16) store_bf16(rounded, v);
        if constexpr (Dot::kIsRounded) {
          for (int64_t i = 0; i < n; i += 2) __builtin_memcpy(out + (k + i) * tile.rows + 2 * m, rounded + i, 4);
        } else {
          if constexpr (kRoundsToBf16) v = load_bf16(reinterpret_cast<const std::byte*>(rounded));
          float lanes_of_v[16];
          store(lanes_of_v, v);
          for (int64_t i = 0; i < n; ++i) out[(k + i) * tile.rows + m] = lanes_of_v[i];
        }
      }
    }
  }
}

template <class Dot>
int64_t float_row_bytes(int64_t k, const IntFormat&) {
  return (k + 1) / 2 * 2 * static_cast<int64_t>(sizeof(typename Dot::Activation));
}

}  // namespace fastllm::cpu::FASTLLM_ISA
