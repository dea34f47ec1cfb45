// What every tile of attention shares: where its pages are, which tokens a row sees, the scores before exp, and in what
// blocks of rows the steps are made.
#pragma once

#include "cpu/simd_math.h"

namespace fastllm::cpu::FASTLLM_ISA {

FASTLLM_INLINE int64_t at_least(int64_t a, int64_t b) { return a > b ? a : b; }
FASTLLM_INLINE int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }

// The pages that any row sees, [begin, end).
struct PageRange {
  int64_t begin;
  int64_t end;
};
FASTLLM_INLINE PageRange pages_seen(const AttentionTileJob& job) {
  int64_t begin = kTileTokens;
  int64_t end = 0;
  for (int64_t i = 0; i < job.num_rows; ++i) {
    if (job.begin[i] >= job.end[i]) continue;
    begin = at_most(begin, job.begin[i]);
    end = at_least(end, job.end[i]);
  }
  return {begin / kPageTokens, (end + kPageTokens - 1) / kPageTokens};
}

// With so few rows a tile waits for memory, and the first of them fetch ahead. Into the second cache: the first one is
// full of what is computed with.
constexpr int64_t kFetchedRows = 16;
constexpr int64_t kAheadPages = 4;
template <int64_t kBytes>
FASTLLM_INLINE void fetch(const std::byte* p) {
  for (int64_t i = 0; i < kBytes; i += 64) __builtin_prefetch(p + i, 0, 2);
}

struct AllLanes {};
FASTLLM_INLINE Vec select(AllLanes, Vec x, Vec) { return x; }

struct TileBase {
  const AttentionTileJob& job;
  int64_t padded_dim = (job.head_dim + kLanes - 1) / kLanes * kLanes;
  PageRange range{};  // that any row sees; set by run_tile()

  [[nodiscard]] FASTLLM_INLINE const std::byte* page(int64_t i) const { return job.kv + job.pages[i] * job.page_bytes; }

  // A tile is read page by page, first all K, then all V; the pages of a sequence lie anywhere, so nothing but this
  // knows what follows. The K that is read kAheadPages after that of page i, which may be V:
  [[nodiscard]] FASTLLM_INLINE const std::byte* after_k(int64_t i) const {
    const int64_t next = i + kAheadPages;
    if (next < range.end) return page(next);
    return page(at_most(range.begin + next - range.end, range.end - 1)) + job.v_offset;
  }
  // The V that is read kAheadPages after that of page i, which may be K of the next tile.
  [[nodiscard]] FASTLLM_INLINE const std::byte* after_v(int64_t i) const {
    const int64_t next = i + kAheadPages;
    if (next < range.end) return page(next) + job.v_offset;
    if (next - range.end >= job.num_next_pages) return page(i);  // it is there already: costs nothing
    return job.next_kv + job.next_pages[next - range.end] * job.page_bytes;
  }

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

template <int kRows, int kPages, class Tile>
void score_pages(const Tile& tile, int64_t row) {
  int64_t j = tile.range.begin;
  for (; j + kPages <= tile.range.end; j += kPages) tile.template score<kRows, kPages>(row, j);
  for (; j < tile.range.end; ++j) tile.template score<kRows, 1>(row, j);
}

// Rows in blocks of 8, 4, 2, 1 (fewer where registers are few), pages and dimensions to fill the accumulators.
template <class Tile>
void run_tile(Tile tile) {
  constexpr bool kIsWide = kMaxAccumulators >= 16;
  const AttentionTileJob& job = tile.job;
  tile.range = pages_seen(job);
  int64_t row = 0;
  if constexpr (kIsWide) {
    for (; row + 8 <= job.num_rows; row += 8) score_pages<8, 2>(tile, row);
  }
  for (; row + 4 <= job.num_rows; row += 4) score_pages<4, kIsWide ? 4 : 1>(tile, row);
  for (; row + 2 <= job.num_rows; row += 2) score_pages<2, kIsWide ? 4 : 2>(tile, row);
  for (; row < job.num_rows; ++row) score_pages<1, 4>(tile, row);

  for (int64_t i = 0; i < job.num_rows; ++i) tile.normalize(i);

  for (int64_t i = 0; i < job.num_rows * tile.padded_dim; i += kLanes) store(job.out.o + i, zero());
  row = 0;
  for (; row + 4 <= job.num_rows; row += 4) tile.template weigh_rows<4, kIsWide ? 4 : 1>(row);
  for (; row + 2 <= job.num_rows; row += 2) tile.template weigh_rows<2, kIsWide ? 8 : 2>(row);
  for (; row < job.num_rows; ++row) tile.template weigh_rows<1, kIsWide ? 8 : 4>(row);
}

}  // namespace fastllm::cpu::FASTLLM_ISA
