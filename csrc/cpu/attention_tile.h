// What every tile of attention shares: where its pages are, which tokens a row sees, and the scores before exp.
#pragma once

#include "cpu/simd_math.h"

namespace fastllm::cpu::FASTLLM_ISA {

FASTLLM_INLINE int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
FASTLLM_INLINE int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

struct TileBase {
  const AttentionTileJob& job;
  int64_t padded_dim = (job.head_dim + kLanes - 1) / kLanes * kLanes;

  [[nodiscard]] FASTLLM_INLINE const std::byte* page(int64_t i) const { return job.kv + job.pages[i] * job.page_bytes; }

  FASTLLM_INLINE void put_score(int64_t row, int64_t page_idx, Vec dot) const {
    Vec s = mul(dot, set1(job.scale));
    if (job.softcap > 0.0f) s = mul(set1(job.softcap), tanh(div(s, set1(job.softcap))));
    store(job.scores + row * kTileTokens + page_idx * kPageTokens, s);
  }

  // Tokens [begin, end) of the tile, which lie in the vectors [first, last).
  struct Seen {
    int64_t begin, end, first, last;
    [[nodiscard]] FASTLLM_INLINE Mask mask(int64_t vector) const {
      return lanes(begin - vector * kLanes, end - vector * kLanes);
    }
  };
  [[nodiscard]] FASTLLM_INLINE Seen seen_by(int64_t row) const {
    const int64_t begin = job.begin[row];
    const int64_t end = job.end[row];
    const int64_t first = begin / kLanes;
    return {begin, end, first, begin < end ? (end + kLanes - 1) / kLanes : first};
  }

  // The largest score that the row sees, -infinity if it sees none. A NaN among them is not found here: it ends in l.
  [[nodiscard]] FASTLLM_INLINE float row_max(const float* scores, const Seen& seen) const {
    Vec top = set1(-kInfinity);
    for (int64_t j = seen.first; j < seen.last; ++j) {
      top = max(top, select(seen.mask(j), load(scores + j * kLanes), set1(-kInfinity)));
    }
    return reduce_max(top);
  }
};

}  // namespace fastllm::cpu::FASTLLM_ISA
