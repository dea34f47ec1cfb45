// One tile of attention: up to 32 rows (query token, head of one group) against up to 256 tokens of one kv head.
//
//   s[r, j] = softcap(scale * q[r] . k[j]),  m = max s,  p = exp(s - m),  l = sum p,  o = sum p * v
//
// A page holds, per kv head, K as [dim / 2] pair blocks whose lanes are its 16 tokens, then V as
// [token / 2][dim / 16] pair blocks whose lanes are dimensions. So neither product needs a horizontal sum, and one load
// serves every row.
//
// Order: q . k by ascending dimension; l as 16 lanes (token mod 16) and the fixed tree; o by ascending token; one fused
// multiply-add each. All of it depends on the row and the absolute position alone. Tokens that a row does not see are
// skipped or selected away, never multiplied by 0: what lies there may be anything.
#include "cpu/attention_dots.h"
#include "cpu/attention_tile.h"

namespace fastllm::cpu::FASTLLM_ISA {
namespace {

// The first step alone of a pair block.
template <class E>
FASTLLM_INLINE Vec load_step(const std::byte* p, bool is_second) {
  Vec first, second;
  load_pair(E{}, p, first, second);
  return is_second ? second : first;
}

template <class E, bool kFetches>
struct FmaTile : TileBase {
  static constexpr int64_t kPairBytes = pair_block_bytes(E::kElem);

  template <int kRows, int kPages>
  FASTLLM_INLINE void score(int64_t row, int64_t first_page) const {
    const float* q = job.q + row * job.head_dim;
    const std::byte* k[kPages];
    const std::byte* ahead[kPages];
    for (int j = 0; j < kPages; ++j) {
      k[j] = page(first_page + j);
      ahead[j] = after_k(first_page + j);
    }
    Vec acc[kRows][kPages];
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kPages; ++j) acc[i][j] = zero();
    }
    int64_t d = 0;
    for (; d + 2 <= job.head_dim; d += 2) {
      Vec even[kPages], odd[kPages];
      if (kFetches && row == 0) {
        for (int j = 0; j < kPages; ++j) fetch<kPairBytes>(ahead[j] + d / 2 * kPairBytes);
      }
      for (int j = 0; j < kPages; ++j) load_pair(E{}, k[j] + d / 2 * kPairBytes, even[j], odd[j]);
      for (int i = 0; i < kRows; ++i) {
        const Vec x = set1(q[i * job.head_dim + d]);
        for (int j = 0; j < kPages; ++j) acc[i][j] = fma(x, even[j], acc[i][j]);
      }
      for (int i = 0; i < kRows; ++i) {
        const Vec x = set1(q[i * job.head_dim + d + 1]);
        for (int j = 0; j < kPages; ++j) acc[i][j] = fma(x, odd[j], acc[i][j]);
      }
    }
    if (d < job.head_dim) {
      for (int j = 0; j < kPages; ++j) {
        const Vec last = load_step<E>(k[j] + d / 2 * kPairBytes, false);
        for (int i = 0; i < kRows; ++i) acc[i][j] = fma(set1(q[i * job.head_dim + d]), last, acc[i][j]);
      }
    }
    for (int i = 0; i < kRows; ++i) {
      for (int j = 0; j < kPages; ++j) {
        put_score(row + i, first_page + j, acc[i][j]);
      }
    }
  }

  // Scores become weights in place; m and l of the row. A row that sees nothing has m = -infinity and l = 0; so has one
  // whose scores are all -infinity. A NaN among the scores ends in l, whatever the maximum made of it.
  void normalize(int64_t row) const {
    float* s = job.scores + row * kTileTokens;
    const Seen seen = seen_by(row);
    const float m = row_max(s, seen);
    job.out.m[row] = m;
    const Vec offset = set1(m == -kInfinity ? 0.0f : m);
    Vec sum = zero();
    for_seen(seen, [&](int64_t j, auto mask) __attribute__((always_inline)) {
      const Vec p = select(mask, exp_negative(sub(load(s + j * kLanes), offset)), zero());
      store(s + j * kLanes, p);
      sum = add(sum, p);
    });
    job.out.l[row] = reduce_add(sum);
  }

  // o += p * v for tokens [begin, end) and kBlocks blocks of 16 dimensions.
  template <int kRows, int kBlocks>
  FASTLLM_INLINE void weigh(int64_t row, int64_t begin, int64_t end, int64_t block) const {
    const float* p = job.scores + row * kTileTokens;
    float* o = job.out.o + row * padded_dim + block * kLanes;
    const int64_t pair_stride = padded_dim / kLanes * kPairBytes;
    Vec acc[kRows][kBlocks];
    for (int i = 0; i < kRows; ++i) {
      for (int b = 0; b < kBlocks; ++b) acc[i][b] = load(o + i * padded_dim + b * kLanes);
    }
    for (int64_t j = begin; j < end;) {
      const std::byte* v = page(j / kPageTokens) + job.v_offset + block * kPairBytes;
      const std::byte* ahead = after_v(j / kPageTokens) + block * kPairBytes;
      const int64_t page_stop = at_most(end, (j / kPageTokens + 1) * kPageTokens);
      if (j % 2 == 1) {
        weigh_one<kRows, kBlocks>(v + j % kPageTokens / 2 * pair_stride, p + j, true, acc);
        ++j;
      }
      for (; j + 2 <= page_stop; j += 2) {
        const std::byte* pair = v + j % kPageTokens / 2 * pair_stride;
        if (kFetches && row == 0) fetch<kBlocks * kPairBytes>(ahead + j % kPageTokens / 2 * pair_stride);
        for (int b = 0; b < kBlocks; ++b) {
          Vec even, odd;
          load_pair(E{}, pair + b * kPairBytes, even, odd);
          for (int i = 0; i < kRows; ++i) acc[i][b] = fma(set1(p[i * kTileTokens + j]), even, acc[i][b]);
          for (int i = 0; i < kRows; ++i) acc[i][b] = fma(set1(p[i * kTileTokens + j + 1]), odd, acc[i][b]);
        }
      }
      if (j < page_stop) {
        weigh_one<kRows, kBlocks>(v + j % kPageTokens / 2 * pair_stride, p + j, false, acc);
        ++j;
      }
    }
    for (int i = 0; i < kRows; ++i) {
      for (int b = 0; b < kBlocks; ++b) store(o + i * padded_dim + b * kLanes, acc[i][b]);
    }
  }

  template <int kRows, int kBlocks>
  static FASTLLM_INLINE void weigh_one(const std::byte* pair, const float* p, bool is_second,
                                       Vec (&acc)[kRows][kBlocks]) {
    for (int b = 0; b < kBlocks; ++b) {
      const Vec v = load_step<E>(pair + b * kPairBytes, is_second);
      for (int i = 0; i < kRows; ++i) acc[i][b] = fma(set1(p[i * kTileTokens]), v, acc[i][b]);
    }
  }

  template <int kRows, int kBlocks>
  void weigh_dims(int64_t row, int64_t begin, int64_t end) const {
    if (begin >= end) return;
    const int64_t num_blocks = padded_dim / kLanes;
    int64_t b = 0;
    for (; b + kBlocks <= num_blocks; b += kBlocks) weigh<kRows, kBlocks>(row, begin, end, b);
    for (; b < num_blocks; ++b) weigh<kRows, 1>(row, begin, end, b);
  }

  // Rows that see different tokens: what all see together, before and after it each row alone.
  template <int kRows, int kBlocks>
  void weigh_rows(int64_t row) const {
    constexpr int kAloneBlocks = kMaxAccumulators >= 16 ? 8 : 4;
    int64_t begin = 0;
    int64_t end = kTileTokens;
    for (int i = 0; i < kRows; ++i) {
      begin = at_least(begin, job.begin[row + i]);
      end = at_most(end, job.end[row + i]);
    }
    const bool is_shared = begin < end;
    for (int i = 0; i < kRows; ++i) {
      weigh_dims<1, kAloneBlocks>(row + i, job.begin[row + i], is_shared ? begin : job.end[row + i]);
    }
    if (!is_shared) return;
    weigh_dims<kRows, kBlocks>(row, begin, end);
    for (int i = 0; i < kRows; ++i) weigh_dims<1, kAloneBlocks>(row + i, end, job.end[row + i]);
  }
};

template <class E>
void run_fma_tile(const AttentionTileJob& job) {
  if (job.num_rows <= kFetchedRows) return run_tile(FmaTile<E, true>{{job}});
  run_tile(FmaTile<E, false>{{job}});
}

template <class F>
void run_dot_tile(const AttentionTileJob& job) {
  float p_scale[kAttentionRows];
  if (job.num_rows <= kFetchedRows) return run_tile(DotTile<F, true>{{job}, p_scale});
  run_tile(DotTile<F, false>{{job}, p_scale});
}

// into = into + tile, both scaled to the larger maximum.
void merge(const AttentionState& into, const AttentionState& tile, int64_t num_rows, int64_t head_dim) {
  const int64_t padded_dim = (head_dim + kLanes - 1) / kLanes * kLanes;
  for (int64_t i = 0; i < num_rows; ++i) {
    const float new_m = tile.m[i];
    if (new_m == -kInfinity && tile.l[i] == 0.0f) continue;
    const float old_m = into.m[i];
    const float m = old_m > new_m ? old_m : new_m;
    const float old_scale = exp1(old_m - m);
    const float new_scale = exp1(new_m - m);
    into.m[i] = m;
    into.l[i] = __builtin_fmaf(tile.l[i], new_scale, into.l[i] * old_scale);
    float* o = into.o + i * padded_dim;
    const float* added = tile.o + i * padded_dim;
    for (int64_t d = 0; d < padded_dim; d += kLanes) {
      store(o + d, fma(load(added + d), set1(new_scale), mul(load(o + d), set1(old_scale))));
    }
  }
}

void finish(const AttentionState& state, const float* const* sinks, float* const* out, int64_t num_rows,
            int64_t head_dim) {
  const int64_t padded_dim = (head_dim + kLanes - 1) / kLanes * kLanes;
  for (int64_t i = 0; i < num_rows; ++i) {
    float l = state.l[i];
    float scale = 1.0f;
    if (sinks != nullptr) {
      const float sink = *sinks[i];
      const float m = state.m[i] > sink ? state.m[i] : sink;
      scale = exp1(state.m[i] - m);
      l = __builtin_fmaf(l, scale, exp1(sink - m));
    }
    const float* o = state.o + i * padded_dim;
    for (int64_t d = 0; d < head_dim; d += kLanes) {
      store_n(out[i] + d, div(mul(load(o + d), set1(scale)), set1(l)), head_dim - d);
    }
  }
}

}  // namespace

extern const AttentionKernels kAttentionKernels;
#if defined(__AVX512BF16__)
constexpr auto kPackBf16 = pack_q_dots<DotBf16>;
constexpr auto kBf16Tile = run_dot_tile<DotBf16>;
#else
constexpr void (*kPackBf16)(const AttentionTileJob&) = nullptr;
constexpr auto kBf16Tile = run_fma_tile<BF16>;
#endif
constinit const AttentionKernels kAttentionKernels = {
    {nullptr, kPackBf16, nullptr, pack_q_dots<DotInt8>},
    {run_fma_tile<F32>, kBf16Tile, run_fma_tile<F16>, run_dot_tile<DotInt8>},
    merge,
    finish,
};

}  // namespace fastllm::cpu::FASTLLM_ISA
