// out[t, h] = softmax over the visible positions of softcap(scale * q . k), times v.
//       q, out [T, H * D]; pages of K and V; block table [S, max_pages]; sinks [H]
//
// One warp per (token, head): the plain version that the others are compared with. Positions go in chunks of 32 that
// begin at multiples of 32: a lane computes the score of one position, then the lanes share out the dimensions of the
// weighted sum. Running maximum and sum as in Milakov and Gimelshein, "Online normalizer calculation for softmax".
// Order of the sums: positions ascending within a chunk, chunks ascending: fixed by the position alone.
// Defined by reference/attention.cpp; tested in tests/ops/test_attention.py.
#include "cuda/attention/attention_simple.h"
#include "cuda/device_mat.h"
#include "cuda/kv_pages.h"

namespace fastllm::cuda {
namespace {

constexpr uint32_t kWarp = 32;

template <class T>
struct AttentionParams {
  DeviceMat q, out;
  KvPages<T> kv;
  const int32_t* query_start;
  const int32_t* context_len;
  const int32_t* block_table;
  const float* sinks;  // or null
  int64_t num_seqs;
  int64_t max_pages;
  int64_t window;
  int32_t head_dim;
  int32_t heads_per_kv_head;
  float scale;
  float softcap;
};

struct AttentionShared {
  float weights[kWarp];
};

// The sequence that owns token t: the last one that starts at or before it and is not empty.
__device__ inline int64_t sequence_of(const int32_t* query_start, int64_t num_seqs, int64_t t) {
  int64_t low = 0;
  int64_t high = num_seqs;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (query_start[middle] <= t) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// registers: 96, int8 on sm_80; 64 otherwise
template <class T>
__global__ void __launch_bounds__(kWarp) attention_simple_kernel(AttentionParams<T> p) {
  auto& shared = *fl::smem<AttentionShared>();
  const int64_t t = blockIdx.x;
  const int64_t head = blockIdx.y;
  const int64_t kv_head = head / p.heads_per_kv_head;
  const int64_t s = sequence_of(p.query_start, p.num_seqs, t);
  const int64_t position = p.context_len[s] - p.query_start[s + 1] + t;
  const int64_t first = p.window > 0 && position + 1 > p.window ? position + 1 - p.window : 0;
  const int32_t* pages = p.block_table + s * p.max_pages;
  const float* q = p.q.row(t) + head * p.head_dim;
  float* out = p.out.row(t) + head * p.head_dim;
  const auto lane = static_cast<int32_t>(fl::lane_id());

  for (int32_t d = lane; d < p.head_dim; d += kWarp) out[d] = 0.0f;
  float largest = p.sinks != nullptr ? p.sinks[head] : -INFINITY;
  float sum = p.sinks != nullptr ? 1.0f : 0.0f;
  for (int64_t chunk = first / kWarp * kWarp; chunk <= position; chunk += kWarp) {
    const int64_t j = chunk + lane;
    float score = -INFINITY;
    if (j >= first && j <= position) {
      const KvRow<T> k = p.kv.row(pages[j / kPageSize], false, kv_head, j % kPageSize);
      float dot = 0.0f;
      for (int32_t d = 0; d < p.head_dim; ++d) dot = fmaf(q[d], k[d], dot);
      score = dot * p.scale;
      if (p.softcap > 0.0f) score = p.softcap * tanhf(score / p.softcap);
    }
    float top = largest;
    top = fmaxf(top, score);
    for (int step = 16; step > 0; step /= 2) top = fmaxf(top, fl::shfl_xor(fl::kFullMask, top, step));
    // A score that is not a number hides from fmaxf: it comes back through its own exponential.
    const float weight = score == -INFINITY ? 0.0f : expf(score - top);
    const float keep = largest == -INFINITY ? 0.0f : expf(largest - top);
    shared.weights[lane] = weight;
    fl::sync_warp();
    sum *= keep;
    for (uint32_t i = 0; i < kWarp; ++i) sum += shared.weights[i];
    for (int32_t d = lane; d < p.head_dim; d += kWarp) {
      float value = out[d] * keep;
      for (int64_t i = chunk < first ? first - chunk : 0; i < kWarp && chunk + i <= position; ++i) {
        const KvRow<T> v = p.kv.row(pages[(chunk + i) / kPageSize], true, kv_head, (chunk + i) % kPageSize);
        value = fmaf(shared.weights[i], v[d], value);
      }
      out[d] = value;
    }
    largest = top;
    fl::sync_warp();
  }
  const float scale = sum == 0.0f ? 0.0f : 1.0f / sum;  // nothing is visible to rows of padding: zeros
  for (int32_t d = lane; d < p.head_dim; d += kWarp) out[d] *= scale;
}

}  // namespace

void attention_simple(fl::Stream& stream, const PagedAttentionArgs& args) {
  const KvSpec& spec = args.kv.spec;
  const StepView& step = *args.step;
  with_kv_type(spec.dtype, [&]<class T>(T) {
    const AttentionParams<T> p{device_mat(args.q),
                               device_mat(args.out),
                               kv_pages<T>(args.kv),
                               step.query_start,
                               step.context_len,
                               step.block_table,
                               args.sinks,
                               step.num_seqs,
                               step.max_pages,
                               args.window,
                               narrow<int32_t>(spec.head_dim),
                               narrow<int32_t>(args.num_heads / spec.num_kv_heads),
                               args.scale,
                               args.softcap};
    const fl::Dim3 grid{narrow<uint32_t>(args.q.rows), narrow<uint32_t>(args.num_heads), 1};
    fl::launch(stream, {"attention_simple", grid, kWarp, sizeof(AttentionShared)}, attention_simple_kernel<T>, p);
  });
}

}  // namespace fastllm::cuda
