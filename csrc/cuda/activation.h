// The gate of a feed-forward block, in float32.
#pragma once

#include "cuda/fl/gpu.h"
#include "ops/ops.h"

namespace fastllm::cuda {

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <Activation Kind>
__device__ inline float gated(float gate, float up, float alpha, float limit) {
  if constexpr (Kind == Activation::kSilu) {
    return gate * sigmoid(gate) * up;
  } else if constexpr (Kind == Activation::kGeluTanh) {
    constexpr float kSqrt2OverPi = 0.79788456080286535588f;
    return 0.5f * gate * (1.0f + tanhf(kSqrt2OverPi * fmaf(0.044715f * gate * gate, gate, gate))) * up;
  } else {
    const float g = gate > limit ? limit : gate;  // NaN stays NaN
    const float u = up > limit ? limit : up < -limit ? -limit : up;
    return g * sigmoid(alpha * g) * (u + 1.0f);
  }
}

// Calls f with a tag whose value is the kind.
template <class F>
void with_activation(Activation kind, F&& f) {
  switch (kind) {
    case Activation::kSilu:
      return f(std::integral_constant<Activation, Activation::kSilu>{});
    case Activation::kGeluTanh:
      return f(std::integral_constant<Activation, Activation::kGeluTanh>{});
    case Activation::kClampedSwiglu:
      return f(std::integral_constant<Activation, Activation::kClampedSwiglu>{});
  }
}

}  // namespace fastllm::cuda
