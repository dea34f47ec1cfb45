// Arguments of the attention kernels, and how query rows become columns of a warp.
//
// The rows of one sequence and kv head are its q_len tokens times the g = H / G heads that share it: row r is token r /
// g, head r % g of the group. Packed like this, one new token with g heads and a chunk of a hundred are the same thing.
#pragma once

#include "cuda/attention/unit.h"
#include "cuda/device_mat.h"

namespace fastllm::cuda {

struct AttentionParams {
  DeviceMat q, out;
  PagesView pages;
  const int32_t* query_start;
  const int32_t* context_len;
  const int32_t* block_table;
  const float* sinks;  // or null
  int64_t max_pages;
  int32_t page_size;
  int32_t num_seqs;
  int32_t num_heads;
  int32_t num_kv_heads;
  int32_t window;     // 0: none
  float q_factor;     // what q is multiplied by before it is rounded
  float softcap;      // in log2, 0: none
  float* partials;    // [cell][D] unnormalised o of a unit and row, by decode for merge
  float* partial_ml;  // [cell][2] its m and l
  int64_t num_cells;

  __device__ int32_t group() const { return num_heads / num_kv_heads; }
  // In log2, as the scores.
  __device__ float sink(int32_t head) const { return sinks != nullptr ? sinks[head] * kLog2E : -INFINITY; }
};

struct Sequence {
  int32_t begin;    // its first new token
  int32_t q_len;    // new tokens
  int32_t context;  // with them

  __device__ Sequence(const AttentionParams& p, int32_t s)
      : begin(p.query_start[s]), q_len(p.query_start[s + 1] - begin), context(p.context_len[s]) {}
  __device__ int32_t position(int32_t token) const { return context - q_len + token; }
};
// The first position that a token sees.
__device__ inline int32_t first_seen(const AttentionParams& p, int32_t position) {
  return p.window > 0 && position >= p.window ? position + 1 - p.window : 0;
}

// 8 NT rows from `first` on, as the columns of a warp. Columns without a row compute with q = 0 and see everything.
template <class Format, int D, int NT>
struct Rows {
  const AttentionParams& p;
  Sequence seq;
  int32_t kv_head;
  int32_t first;
  int32_t end;  // of the rows of this warp

  __device__ Rows(const AttentionParams& params, const Sequence& sequence, int32_t head, int32_t first_row)
      : p(params), seq(sequence), kv_head(head), first(first_row) {
    const int32_t all = seq.q_len * p.group();
    end = all < first + 8 * NT ? all : first + 8 * NT;
  }
  __device__ bool is_empty() const { return first >= end; }
  __device__ int32_t token(int32_t row) const { return row / p.group(); }
  __device__ int32_t head(int32_t row) const { return kv_head * p.group() + row % p.group(); }
  // All rows together see [lowest, highest]; each of them sees [lowest_of_last, highest_of_first].
  __device__ int32_t lowest() const { return first_seen(p, highest_of_first()); }
  __device__ int32_t highest() const { return seq.position(token(end - 1)); }
  __device__ int32_t lowest_of_last() const { return first_seen(p, highest()); }
  __device__ int32_t highest_of_first() const { return seq.position(token(first)); }

  __device__ void load_q(uint32_t (&q)[D / 16][NT][2]) const {
    const int g = static_cast<int>(fl::lane_id()) / 4;
    const int t = static_cast<int>(fl::lane_id()) % 4;
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
      const int32_t row = first + 8 * nt + g;
      const bool is_row = row < end;
      const float* from = is_row ? p.q.row(seq.begin + token(row)) + head(row) * D : nullptr;
#pragma unroll
      for (int step = 0; step < D / 16; ++step) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int d = 16 * step + Format::q_dim(t, i);
          q[step][nt][i] = is_row ? Format::pack(operand(from[d]), operand(from[d + 1])) : 0u;
        }
      }
    }
  }
  __device__ Visible<NT> visible() const {
    Visible<NT> visible;
    const int t = static_cast<int>(fl::lane_id()) % 4;
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int32_t row = first + 8 * nt + 2 * t + c;
        const int32_t position = row < end ? seq.position(token(row)) : INT32_MAX - 1;
        visible.high[nt][c] = position;
        visible.low[nt][c] = row < end ? first_seen(p, position) : 0;
      }
    }
    return visible;
  }

  // Calls f(row, nt, c) for the rows whose values this lane holds; the eight lanes that share a t come with different
  // dims.
  template <class F>
  __device__ void for_each(F f) const {
    const int t = static_cast<int>(fl::lane_id()) % 4;
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int32_t row = first + 8 * nt + 2 * t + c;
        if (row < end) f(row, nt, c);
      }
    }
  }
  // to[d] = o * factor for this lane's dims of column (nt, c).
  __device__ static void store(float* to, const float (&o)[D / 16][NT][4], int nt, int c, float factor) {
    const int g = static_cast<int>(fl::lane_id()) / 4;
#pragma unroll
    for (int d = 0; d < D / 16; ++d) {
#pragma unroll
      for (int r = 0; r < 2; ++r) to[16 * d + Format::out_dim(g, r)] = o[d][nt][2 * r + c] * factor;
    }
  }
  __device__ void store_out(const float (&o)[D / 16][NT][4], const float (&m)[NT][2], const float (&l)[NT][2]) const {
    for_each([&](int32_t row, int nt, int c) {
      const float factor = normalizer(m[nt][c], l[nt][c], p.sink(head(row)));
      store(p.out.row(seq.begin + token(row)) + head(row) * D, o, nt, c, factor);
    });
  }

 private:
  __device__ float operand(float x) const {
    x *= p.q_factor;
    // Infinities stay, so that they are not taken for a number.
    if constexpr (Format::kIsF16) x = fabsf(x) < INFINITY ? fminf(fmaxf(x, -kLargestF16), kLargestF16) : x;
    return x;
  }
};

}  // namespace fastllm::cuda
