// y[t] = sum over j of weights[t, j] * from[slot_of[t, j]], by ascending slot.
//
// One CTA per token. Slots are sorted by expert, so ascending slots are ascending experts: the order of the sum is that
// of the contract. Its first thread sorts the k choices; then every thread takes columns. Bytes: k rows read, one
// written.
#include "core/checked.h"
#include "cuda/fl/gpu.h"
#include "cuda/moe/moe.h"

namespace fastllm::cuda {
namespace {

constexpr int kThreads = 256;

struct CombineArgs {
  const float* from;
  const float* weights;
  const int32_t* slot_of;
  int32_t top_k;
  int64_t num_cols;
  float* y;
  int64_t y_stride;
};

struct Choice {
  int32_t slot;
  float weight;
};

// registers: 40
__global__ void __launch_bounds__(kThreads) moe_combine_kernel(CombineArgs a) {
  Choice* choices = fl::smem<Choice>();  // [top_k]
  const int64_t token = blockIdx.x;
  if (threadIdx.x == 0) {
    for (int j = 0; j < a.top_k; ++j) {  // insertion: k is small
      const Choice choice{a.slot_of[token * a.top_k + j], a.weights[token * a.top_k + j]};
      int at = j;
      for (; at > 0 && choices[at - 1].slot > choice.slot; --at) choices[at] = choices[at - 1];
      choices[at] = choice;
    }
  }
  fl::sync_threads();
  for (int64_t col = threadIdx.x; col < a.num_cols; col += kThreads) {
    float sum = 0.0f;
    for (int j = 0; j < a.top_k; ++j) {
      sum = fmaf(choices[j].weight, a.from[choices[j].slot * a.num_cols + col], sum);
    }
    a.y[token * a.y_stride + col] = sum;
  }
}

}  // namespace

void moe_combine(fl::Stream& stream, const float* from, const float* weights, const int32_t* slot_of,
                 int64_t num_tokens, int64_t top_k, int64_t num_cols, float* y, int64_t y_stride) {
  const CombineArgs args{from, weights, slot_of, narrow<int32_t>(top_k, "top_k"), num_cols, y, y_stride};
  fl::launch(
      stream,
      {"moe_combine", {narrow<uint32_t>(num_tokens, "tokens")}, kThreads, top_k * static_cast<int64_t>(sizeof(Choice))},
      moe_combine_kernel, args);
}

}  // namespace fastllm::cuda
