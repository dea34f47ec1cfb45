// Tiles of attention whose products are dot products of 16-bit pairs, two steps of a sum per lane and instruction:
//
//   int8 pages, every level   q -> s_q * int16 per (row, 32 dimensions), so that
//                               q . k = sum over groups g, ascending, of float(exact int32 dot) * s_q[g] * s_k[g]
//                             p * s_v -> s_p * int16 per (row, tile), so that o = float(exact int32 sum) * s_p
//                             15 bits for q and p, 8 for k and v: what is lost is lost in the page. Integer sums, so
//                             all levels have the same bits. Largest sums: 32 * 127 * 16256 and 256 * 127 * 32767.
//   bf16 pages, bf16 level    q and p rounded to bf16, float sums by ascending pair.
//
// The rest is as attention_kernels.cpp says. int8 needs no care for hidden tokens in p * v: their factor is 0, and 0
// times any code is 0.
#pragma once

#include "cpu/attention_tile.h"
#include "cpu/simd_pairs.h"

namespace fastllm::cpu::FASTLLM_ISA {

struct DotInt8 {
  using Sum = Ints;
  static constexpr int64_t kPairBytes = pair_block_bytes(KvElem::kI8);
  static FASTLLM_INLINE Ints nothing() { return set1_int(0); }
  static FASTLLM_INLINE Pairs load(const std::byte* p) { return widen_pairs(p); }
};

#if defined(__AVX512BF16__)
struct DotBf16 {
  using Sum = Vec;
  static constexpr int64_t kPairBytes = pair_block_bytes(KvElem::kBF16);
  static FASTLLM_INLINE Vec nothing() { return zero(); }
  static FASTLLM_INLINE Pairs load(const std::byte* p) { return load_pairs(p); }
  // Returns what it stores.
  static FASTLLM_INLINE Vec round_and_store(int16_t* p, Vec x) {
    const auto bits = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x.v));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), bits);
    return {_mm512_castsi512_ps(_mm512_maskz_slli_epi32(0xffff, _mm512_maskz_cvtepu16_epi32(0xffff, bits), 16))};
  }
};
#endif

constexpr int64_t kScalePairs = kScaleDims / 2;
constexpr float kLargestQ = 16256.0f;  // 127 * 128: 32 products with codes stay below 2^26
constexpr float kLargestP = 32767.0f;

template <class F, bool kFetches>
struct DotTile : TileBase {
  using Sum = typename F::Sum;
  static constexpr bool kIsInt8 = F::kPairBytes == DotInt8::kPairBytes;

  float* p_scale = nullptr;  // [num_rows], int8 only: the tile's scale of p
  int64_t num_pairs = (job.head_dim + 1) / 2;

  // A row of packed q: its pairs, then (int8) the scales of its groups.
  [[nodiscard]] FASTLLM_INLINE std::byte* packed_q(int64_t row) const {
    return job.packed_q + row * kPackedQBytes * padded_dim;
  }
  [[nodiscard]] FASTLLM_INLINE float q_scale(int64_t row, int64_t group) const {
    float s;
    __builtin_memcpy(&s, packed_q(row) + 4 * (num_pairs + group), sizeof(s));
    return s;
  }

  void pack_q(int64_t row) const {
    const float* q = job.q + row * job.head_dim;
    std::byte* to = packed_q(row);
    for (int64_t d = 0; d < job.head_dim; d += kLanes) {
      const int64_t n = at_most(kLanes, job.head_dim - d);
      int16_t codes[kLanes];
      if constexpr (kIsInt8) {
        if (d % kScaleDims == 0) {
          const float scale = largest_of(q + d, at_most(kScaleDims, job.head_dim - d)) / kLargestQ;
          __builtin_memcpy(to + 4 * (num_pairs + d / kScaleDims), &scale, sizeof(scale));
        }
        const float scale = q_scale(row, d / kScaleDims);
        store_i16(codes, scale > 0.0f ? div(load_n(q + d, n), set1(scale)) : zero());
      } else {
        F::round_and_store(codes, load_n(q + d, n));
      }
      // The step after an odd head size is 0, in q as in K.
      __builtin_memcpy(to + 2 * d, codes, static_cast<std::size_t>(2 * ((n + 1) / 2 * 2)));
    }
  }

  // NaN if one of them is not finite.
  static FASTLLM_INLINE float largest_of(const float* x, int64_t n) {
    Vec largest = zero();
    Vec poison = zero();
    for (int64_t i = 0; i < n; i += kLanes) {
      const Vec v = load_n(x + i, n - i);
      largest = max(largest, max(v, sub(zero(), v)));
      poison = fma(v, zero(), poison);
    }
    return reduce_max(largest) + reduce_add(poison);
  }

  template <int kRows, int kPages>
  FASTLLM_INLINE void score(int64_t row, int64_t first_page) const {
    const std::byte* k[kPages];
    const std::byte* ahead[kPages];
    for (int j = 0; j < kPages; ++j) {
      k[j] = page(first_page + j);
      ahead[j] = after_k(first_page + j);
    }
    Vec sum[kRows][kPages];
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kPages; ++j) sum[i][j] = zero();
    }
    const int64_t group_pairs = kIsInt8 ? kScalePairs : num_pairs;
    for (int64_t begin = 0; begin < num_pairs; begin += group_pairs) {
      const int64_t end = at_most(num_pairs, begin + group_pairs);
      Sum acc[kRows][kPages];
      for (int i = 0; i < kRows; ++i) {
        for (int j = 0; j < kPages; ++j) acc[i][j] = F::nothing();
      }
      for (int64_t d = begin; d < end; ++d) {
        Pairs line[kPages];
        if (kFetches && row == 0) {
          for (int j = 0; j < kPages; ++j) fetch<F::kPairBytes>(ahead[j] + d * F::kPairBytes);
        }
        for (int j = 0; j < kPages; ++j) line[j] = F::load(k[j] + d * F::kPairBytes);
        for (int i = 0; i < kRows; ++i) {
          const Pairs x = set_pair(read_pair(packed_q(row + i) + 4 * d));
          for (int j = 0; j < kPages; ++j) acc[i][j] = dot(acc[i][j], x, line[j]);
        }
      }
      if constexpr (kIsInt8) {
        const int64_t group = begin / group_pairs;
        for (int j = 0; j < kPages; ++j) {
          const Vec k_scale = load_bf16(k[j] + job.k_scale_offset + group * kScaleBytes);
          if (kFetches && row == 0) fetch<kScaleBytes>(ahead[j] + job.k_scale_offset + group * kScaleBytes);
          for (int i = 0; i < kRows; ++i) {
            sum[i][j] = fma(mul(to_float(acc[i][j]), set1(q_scale(row + i, group))), k_scale, sum[i][j]);
          }
        }
      } else {
        for (int i = 0; i < kRows; ++i) {
          for (int j = 0; j < kPages; ++j) sum[i][j] = acc[i][j];
        }
      }
    }
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kPages; ++j) put_score(row + i, first_page + j, sum[i][j]);
    }
  }

  // Scores become factors of V; m and l of the row. (m, l, NaN: as in TileBase.)
  void normalize(int64_t row) const {
    float* s = job.scores + row * kTileTokens;
    int16_t* weights = job.weights + row * kTileTokens;
    const Seen seen = seen_by(row);
    const float m = row_max(s, seen);
    job.out.m[row] = m;
    const Vec offset = set1(m == -kInfinity ? 0.0f : m);
    Vec sum = zero();
    Vec largest = zero();
    Vec poison = zero();
    for_seen(seen, [&](int64_t j, auto mask) __attribute__((always_inline)) {
      Vec p = select(mask, exp_negative(sub(load(s + j * kLanes), offset)), zero());
      if constexpr (kIsInt8) {
        sum = add(sum, p);
        p = select(mask, mul(p, load_bf16(page(j) + job.v_scale_offset)), zero());
        store(s + j * kLanes, p);
        largest = max(largest, p);
        poison = fma(p, zero(), poison);
      } else {
        sum = add(sum, F::round_and_store(weights + j * kLanes, p));
      }
    });
    job.out.l[row] = reduce_add(sum);
    if constexpr (kIsInt8) {
      const float top = reduce_max(largest);
      p_scale[row] = top / kLargestP + reduce_add(poison);
      const float factor = top > 1e-30f ? kLargestP / top : 0.0f;  // below, the quotient would overflow
      for (int64_t j = range.begin; j < range.end; ++j) {
        const bool is_there = seen.first <= j && j < seen.last;
        store_i16(weights + j * kLanes, is_there ? mul(load(s + j * kLanes), set1(factor)) : zero());
      }
    }
  }

  // o (+)= p * v for pairs of tokens [begin, end) and kBlocks blocks of 16 dimensions.
  template <int kRows, int kBlocks, bool kIsEdge>
  FASTLLM_INLINE void weigh(int64_t row, int64_t begin, int64_t end, int64_t block) const {
    constexpr int64_t kPagePairs = kPageTokens / 2;
    const int16_t* p = job.weights + row * kTileTokens;
    float* o = job.out.o + row * padded_dim + block * kLanes;
    const int64_t stride = padded_dim / kLanes * F::kPairBytes;
    Sum acc[kRows][kBlocks];
    for (int i = 0; i < kRows; ++i) {
      for (int b = 0; b < kBlocks; ++b) {
        if constexpr (kIsInt8) {
          acc[i][b] = F::nothing();
        } else {
          acc[i][b] = load(o + i * padded_dim + b * kLanes);
        }
      }
    }
    for (int64_t j = begin; j < end;) {
      const std::byte* v = page(j / kPagePairs) + job.v_offset + block * F::kPairBytes;
      const std::byte* ahead = after_v(j / kPagePairs) + block * F::kPairBytes;
      const int64_t stop = at_most(end, (j / kPagePairs + 1) * kPagePairs);
      for (; j < stop; ++j) {
        const std::byte* line = v + j % kPagePairs * stride;
        Pairs values[kBlocks];
        if (kFetches && row == 0) fetch<kBlocks * F::kPairBytes>(ahead + j % kPagePairs * stride);
        for (int b = 0; b < kBlocks; ++b) {
          values[b] = F::load(line + b * F::kPairBytes);
          if constexpr (kIsEdge) values[b] = keep(values[b], seen_half(row, j));
        }
        for (int i = 0; i < kRows; ++i) {
          const Pairs x = set_pair(read_pair(p + i * kTileTokens + 2 * j));
          for (int b = 0; b < kBlocks; ++b) acc[i][b] = dot(acc[i][b], x, values[b]);
        }
      }
    }
    for (int i = 0; i < kRows; ++i) {
      for (int b = 0; b < kBlocks; ++b) {
        if constexpr (kIsInt8) {
          store(o + i * padded_dim + b * kLanes, mul(to_float(acc[i][b]), set1(p_scale[row + i])));
        } else {
          store(o + i * padded_dim + b * kLanes, acc[i][b]);
        }
      }
    }
  }

  // Which of the two tokens of a pair the row sees.
  [[nodiscard]] FASTLLM_INLINE uint32_t seen_half(int64_t row, int64_t pair) const {
    const uint32_t even = 2 * pair >= job.begin[row] ? 0x0000ffffu : 0u;
    const uint32_t odd = 2 * pair + 1 < job.end[row] ? 0xffff0000u : 0u;
    return even | odd;
  }

  template <int kRows, int kBlocks, bool kIsEdge>
  void weigh_dims(int64_t row, int64_t begin, int64_t end) const {
    if (begin >= end) return;
    const int64_t num_blocks = padded_dim / kLanes;
    int64_t b = 0;
    for (; b + kBlocks <= num_blocks; b += kBlocks) weigh<kRows, kBlocks, kIsEdge>(row, begin, end, b);
    for (; b < num_blocks; ++b) weigh<kRows, 1, kIsEdge>(row, begin, end, b);
  }

  template <int kRows, int kBlocks>
  void weigh_rows(int64_t row) const {
    if constexpr (kIsInt8) {
      weigh_dims<kRows, kBlocks, false>(row, range.begin * kPageTokens / 2, range.end * kPageTokens / 2);
    } else {
      // Pairs that all rows see whole, together; before and after them each row alone.
      int64_t begin = 0;
      int64_t end = kTileTokens / 2;
      for (int i = 0; i < kRows; ++i) {
        begin = at_least(begin, (job.begin[row + i] + 1) / 2);
        end = at_most(end, job.end[row + i] / 2);
      }
      const bool is_shared = begin < end;
      for (int i = 0; i < kRows; ++i) {
        if (job.begin[row + i] >= job.end[row + i]) continue;
        const int64_t stop = (job.end[row + i] + 1) / 2;
        weigh_dims<1, 8, true>(row + i, job.begin[row + i] / 2, is_shared ? begin : stop);
      }
      if (!is_shared) return;
      weigh_dims<kRows, kBlocks, false>(row, begin, end);
      for (int i = 0; i < kRows; ++i) weigh_dims<1, 8, true>(row + i, end, (job.end[row + i] + 1) / 2);
    }
  }
};

template <class F>
void pack_q_dots(const AttentionTileJob& job) {
  const DotTile<F, false> tile{{job}, nullptr};
  for (int64_t i = 0; i < job.num_rows; ++i) tile.pack_q(i);
}

}  // namespace fastllm::cpu::FASTLLM_ISA
