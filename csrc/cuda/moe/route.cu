// experts[t, j], weights[t, j] from logits [T, X]: the k largest, ties to the lower expert, and their scores.
//
// One warp per token; lane l looks at experts l, l + 32, ... In each of the k rounds every lane offers the best of its
// experts that come after the last choice in (descending logit, ascending index), and a tree of shuffles finds the best
// of all: no list of what was chosen, no sort. A NaN counts as the smallest, so that ids stay distinct, and makes the
// weights NaN. Sums over experts: by lane ascending, then a fixed tree.
#include "core/checked.h"
#include "cuda/fl/gpu.h"
#include "cuda/moe/moe.h"

namespace fastllm::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / 32;

struct RouteArgs {
  const float* logits;
  int64_t stride;
  int32_t num_tokens;
  int32_t num_experts;
  int32_t top_k;
  RouteScore score;
  bool renormalize;
  float weight_scale;
  int32_t* experts;
  float* weights;
};

__device__ float key_of(float logit) { return logit == logit ? logit : -INFINITY; }

// Whether (key, index) comes before (other_key, other_index).
__device__ bool is_before(float key, int index, float other_key, int other_index) {
  return key > other_key || (key == other_key && index < other_index);
}

// registers: 48
__global__ void __launch_bounds__(kThreads) moe_route_kernel(RouteArgs a) {
  const int token = static_cast<int>(blockIdx.x) * kWarps + static_cast<int>(threadIdx.x) / 32;
  if (token >= a.num_tokens) return;  // a whole warp
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float* logits = a.logits + token * a.stride;
  int32_t* experts = a.experts + static_cast<int64_t>(token) * a.top_k;
  float* weights = a.weights + static_cast<int64_t>(token) * a.top_k;

  float last_key = INFINITY;
  int last = -1;
  float top = 0.0f;  // the largest logit
  float sum_of_chosen = 0.0f;
  for (int j = 0; j < a.top_k; ++j) {
    float best_key = -INFINITY;
    int best = a.num_experts;  // none
    for (int e = lane; e < a.num_experts; e += 32) {
      const float key = key_of(logits[e]);
      if (j > 0 && !is_before(last_key, last, key, e)) continue;
      if (best == a.num_experts || is_before(key, e, best_key, best)) {
        best_key = key;
        best = e;
      }
    }
    for (int step = 16; step > 0; step /= 2) {
      const float other_key = fl::shfl_xor(fl::kFullMask, best_key, step);
      const int other = fl::shfl_xor(fl::kFullMask, best, step);
      if (other != a.num_experts && (best == a.num_experts || is_before(other_key, other, best_key, best))) {
        best_key = other_key;
        best = other;
      }
    }
    last_key = best_key;
    last = best;
    if (j == 0) top = logits[best];
    const float logit = logits[best];
    const float score = a.score == RouteScore::kSigmoid ? 1.0f / (1.0f + expf(-logit)) : expf(logit - top);
    sum_of_chosen += score;
    if (lane == 0) {
      experts[j] = best;
      weights[j] = score;
    }
  }

  float sum = 1.0f;
  if (a.score == RouteScore::kSoftmax) {
    sum = 0.0f;
    for (int e = lane; e < a.num_experts; e += 32) sum += expf(logits[e] - top);
    for (int step = 16; step > 0; step /= 2) sum += fl::shfl_xor(fl::kFullMask, sum, step);
  } else if (a.score == RouteScore::kSoftmaxOfTopK) {
    sum = sum_of_chosen;
  }
  if (lane == 0) {
    const float divisor = a.renormalize ? sum_of_chosen : sum;
    for (int j = 0; j < a.top_k; ++j) weights[j] = weights[j] / divisor * a.weight_scale;
  }
}

}  // namespace

void moe_route(fl::Stream& stream, const MoeRouteArgs& args) {
  const RouteArgs a{args.logits.row<float>(0),
                    args.logits.stride,
                    narrow<int32_t>(args.logits.rows, "tokens"),
                    narrow<int32_t>(args.logits.cols, "experts"),
                    narrow<int32_t>(args.top_k, "top_k"),
                    args.score,
                    args.renormalize,
                    args.weight_scale,
                    args.experts,
                    args.weights};
  fl::launch(stream, {"moe_route", {static_cast<uint32_t>(ceil_div(args.logits.rows, kWarps))}, kThreads, 0},
             moe_route_kernel, a);
}

}  // namespace fastllm::cuda
