// What every tile of attention shares: where its pages are, which tokens a row sees, and the scores before exp.
#pragma once

#include "cpu/simd_math.h"

namespace fastllm::cpu::FASTLLM_ISA {

FASTLLM_INLINE int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
FASTLLM_INLINE int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

struct AllLanes {};
FASTLLM_INLINE Vec select(AllLanes, Vec x, Vec) { return x; }

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
  };
  [[nodiscard]] FASTLLM_INLINE Seen seen_by(int64_t row) const {
    const int64_t begin = job.begin[row];
    const int64_t end = job.end[row];
    const int64_t first = begin / kLanes;
    return {begin, end, first, begin < end ? (end + kLanes - 1) / kLanes : first};
  }

  // Calls body(vector, mask of the lanes that are seen); most see all, which costs nothing.
  template <class Body>
  static FASTLLM_INLINE void for_seen(const Seen& seen, Body&& body) {
    for (int64_t j = seen.first; j < seen.last; ++j) {
      const int64_t begin = seen.begin - j * kLanes;
      const int64_t end = seen.end - j * kLanes;
      if (begin <= 0 && end >= kLanes) {
        body(j, AllLanes{});
      } else {
        body(j, lanes(begin, end));
      }
    }
  }

  // The largest score that the row sees, -infinity if it sees none. A NaN among them is not found here: it ends in l.
  [[nodiscard]] static FASTLLM_INLINE float row_max(const float* scores, const Seen& seen) {
    Vec top = set1(-kInfinity);
    for_seen(seen, [&](int64_t j, auto mask) __attribute__((always_inline)) {
      top = max(top, select(mask, load(scores + j * kLanes), set1(-kInfinity)));
    });
    return reduce_max(top);
  }
};

}  // namespace fastllm::cpu::FASTLLM_ISA
