// Folds the partial results of decode.cu, units ascending: out = sum over units of o 2^(m - M), over that of l (+
// sink).
//       cells [unit][token][head]: o [D], m, l
//
// One warp per (token, head); lane i has dims i, i + 32, ... Bytes moved: cells * (D + 2) * 4, mostly from L2.
// Order of the sum: unit.h. Tested in tests/ops/test_attention.py.
#include "cuda/attention/attention.h"
#include "cuda/attention/plan.h"

namespace fastllm::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMaxHeadDim = 256;

// registers: 64
__global__ void __launch_bounds__(kWarps * 32) attention_merge_kernel(AttentionParams p, int32_t head_dim) {
  constexpr int kPerLane = kMaxHeadDim / 32;
  const Plan plan(fl::smem<int32_t>(), p.num_seqs);
  make_plan<Work::kMerge>(p, plan, 1);
  const auto lane = static_cast<int32_t>(fl::lane_id());
  const int32_t num_items = plan.num_items(p.num_seqs);
  const auto stride = static_cast<int32_t>(gridDim.x * kWarps);
  for (auto i = static_cast<int32_t>(blockIdx.x * kWarps + fl::warp_id()); i < num_items; i += stride) {
    int32_t item = i;
    const int32_t s = plan.find(p.num_seqs, item);
    const Sequence seq(p, s);
    const int32_t num_units = Units(p, seq).count;
    const int32_t token = item / p.num_heads;
    const int32_t head = item % p.num_heads;
    int64_t cell = plan.cell_start[s] + item;
    float m = -INFINITY;
    float l = 0.0f;
    float o[kPerLane];
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) o[j] = 0.0f;
    for (int32_t unit = 0; unit < num_units; ++unit, cell += static_cast<int64_t>(seq.q_len) * p.num_heads) {
      const Fold fold(m, p.partial_ml[2 * cell]);
      m = fold.m;
      l = fold(l, p.partial_ml[2 * cell + 1]);
#pragma unroll
      for (int j = 0; j < kPerLane; ++j) {
        if (lane + 32 * j < head_dim) o[j] = fold(o[j], p.partials[cell * head_dim + lane + 32 * j]);
      }
    }
    const float factor = normalizer(m, l, p.sink(head));
    float* out = p.out.row(seq.begin + token) + head * head_dim;
#pragma unroll
    for (int j = 0; j < kPerLane; ++j) {
      if (lane + 32 * j < head_dim) out[lane + 32 * j] = o[j] * factor;
    }
  }
}

}  // namespace

void attention_merge(fl::Stream& stream, const AttentionParams& p, const AttentionShape& shape) {
  const int64_t smem = Plan::bytes(p.num_seqs);
  const int64_t items = shape.max_decode_tokens * p.num_heads;
  const fl::Dim3 grid = persistent_grid(stream.device().properties(), smem, ceil_div(items, kWarps), 8);
  fl::launch(stream, {"attention_merge", grid, kWarps * 32, smem}, attention_merge_kernel, p,
             narrow<int32_t>(shape.head_dim));
}

}  // namespace fastllm::cuda
