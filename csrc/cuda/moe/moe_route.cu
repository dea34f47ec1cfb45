// The k experts of each token and their weights.        logits [T, X] -> experts, weights [T, k]
//
// One warp per token. k rounds of argmax: lanes hold the experts lane, lane + 32, ...; ties go to the lower index and
// NaN counts as -infinity, so that ids stay distinct (it shows in the weights). Sums: the softmax over all experts adds
// lane by lane, then the xor tree; sums over the chosen ones go in the order of choice.
// Defined by reference/moe.cpp; tested in tests/ops/test_moe.py.
#include "cuda/activation.h"
#include "cuda/device_mat.h"
#include "cuda/kernels.h"

namespace fastllm::cuda {
namespace {

constexpr int kWarp = 32;

struct RouteParams {
  DeviceMat logits;
  int32_t* experts;
  float* weights;
  int32_t num_experts;
  int32_t top_k;
  RouteScore score;
  bool renormalize;
  float weight_scale;
};

struct Best {
  float key;
  int32_t expert;
};
__device__ inline bool is_before(Best a, Best b) { return a.key > b.key || (a.key == b.key && a.expert < b.expert); }
__device__ inline float key_of(float logit) { return logit == logit ? logit : -INFINITY; }

// The first expert that comes after `last`, of all lanes.
__device__ inline Best next_best(const float* logits, int32_t num_experts, Best last) {
  Best best{-INFINITY, INT32_MAX};
  for (auto e = static_cast<int32_t>(fl::lane_id()); e < num_experts; e += kWarp) {
    const Best candidate{key_of(logits[e]), e};
    if (is_before(last, candidate) && is_before(candidate, best)) best = candidate;
  }
  for (int step = 16; step > 0; step /= 2) {
    const Best other = fl::shfl_xor(fl::kFullMask, best, step);
    if (is_before(other, best)) best = other;
  }
  return best;
}

// registers: 48
__global__ void __launch_bounds__(kWarp) moe_route_kernel(RouteParams p) {
  const int64_t t = blockIdx.x;
  const float* logits = p.logits.row(t);
  int32_t* experts = p.experts + t * p.top_k;
  float* weights = p.weights + t * p.top_k;
  Best last{INFINITY, -1};
  float top = 0.0f;
  float sum_of_chosen = 0.0f;
  for (int32_t i = 0; i < p.top_k; ++i) {
    last = next_best(logits, p.num_experts, last);
    const float logit = logits[last.expert];
    if (i == 0) top = logit;
    const float score = p.score == RouteScore::kSigmoid ? sigmoid(logit) : expf(logit - top);
    sum_of_chosen += score;
    if (fl::lane_id() == 0) {
      experts[i] = last.expert;
      weights[i] = score;
    }
  }
  float sum = 1.0f;
  if (p.score == RouteScore::kSoftmaxOfTopK) sum = sum_of_chosen;
  if (p.score == RouteScore::kSoftmax) {
    sum = 0.0f;
    for (auto e = static_cast<int32_t>(fl::lane_id()); e < p.num_experts; e += kWarp) sum += expf(logits[e] - top);
    for (int step = 16; step > 0; step /= 2) sum += fl::shfl_xor(fl::kFullMask, sum, step);
  }
  const float chosen = p.renormalize ? sum_of_chosen / sum : 1.0f;
  fl::sync_warp();
  for (auto i = static_cast<int32_t>(fl::lane_id()); i < p.top_k; i += kWarp) {
    weights[i] = weights[i] / sum / chosen * p.weight_scale;
  }
}

}  // namespace

void moe_route(fl::Stream& stream, const MoeRouteArgs& args) {
  const RouteParams p{device_mat(args.logits),     args.experts, args.weights,     narrow<int32_t>(args.logits.cols),
                      narrow<int32_t>(args.top_k), args.score,   args.renormalize, args.weight_scale};
  fl::launch(stream, {"moe_route", {narrow<uint32_t>(args.logits.rows)}, kWarp, 0}, moe_route_kernel, p);
}

}  // namespace fastllm::cuda
