#include "cuda/emulated.h"

#include "cuda/cuda_backend.h"

namespace fastllm {

std::unique_ptr<Backend> make_emulated_cuda_backend(const fl::DeviceOptions& options) {
  return std::make_unique<cuda::CudaBackend>("cuda:emulated", options);
}

}  // namespace fastllm
