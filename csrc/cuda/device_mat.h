// A matrix of float32 activations inside kernels, and what elementwise launches share.
#pragma once

#include "core/checked.h"
#include "cuda/fl/gpu.h"
#include "ops/ops.h"

namespace fastllm::cuda {

struct DeviceMat {
  float* data;
  int64_t stride;
  __device__ float* row(int64_t i) const { return data + i * stride; }
};
inline DeviceMat device_mat(const Mat& mat) { return {static_cast<float*>(mat.data), mat.stride}; }

// Blocks of `block` threads for `count` elements, one each.
inline fl::Dim3 grid_for(int64_t count, uint32_t block) {
  return {narrow<uint32_t>(ceil_div(count, block), "grid"), 1, 1};
}
__device__ inline int64_t global_thread() { return static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; }

}  // namespace fastllm::cuda
