// The scales of a packed weight inside kernels.
#pragma once

#include "cuda/fl/gpu.h"
#include "cuda/gemm/weight_tiles.h"

namespace fastllm::cuda {

// Of one group, for the two rows of a lane. index: scale_index() of row g.
__device__ inline fl::Vec<float, 2> load_scales(const WeightView& w, const unsigned char* expert, int64_t index) {
  const unsigned char* scales = expert + w.scale_offset;
  if (w.scale_dtype == DType::kF32) return fl::load_nc(reinterpret_cast<const fl::Vec<float, 2>*>(scales + index * 4));
  const uint32_t pair = fl::load_nc(reinterpret_cast<const uint32_t*>(scales + index * 2));
  return w.scale_dtype == DType::kF16 ? fl::unpack_f16x2(pair) : fl::unpack_bf16x2(pair);
}

}  // namespace fastllm::cuda
