#include "cuda/plugin.h"

#include <cuda_runtime_api.h>

#include <string>

#include "cuda/cuda_backend.h"

namespace fastllm {
namespace {

int num_devices(std::string& error) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status == cudaSuccess) return count;
  cudaGetLastError();
  error = std::string(cudaGetErrorName(status)) + ", " + cudaGetErrorString(status);
  return 0;
}

int arch(int ordinal) {
  int major = 0;
  int minor = 0;
  if (cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal) != cudaSuccess ||
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal) != cudaSuccess) {
    cudaGetLastError();
    return 0;
  }
  return major * 10 + minor;
}

Backend* make_backend(int ordinal) {
  return new cuda::CudaBackend("cuda:" + std::to_string(ordinal), {.ordinal = ordinal, .arch = 0, .simt = {}});
}

}  // namespace
}  // namespace fastllm

extern "C" __attribute__((visibility("default"))) const fastllm::CudaPlugin fastllm_cuda_plugin;
const fastllm::CudaPlugin fastllm_cuda_plugin = {fastllm::kCudaPluginVersion, CUDART_VERSION, FASTLLM_CUDA_ARCHS,
                                                 fastllm::num_devices,        fastllm::arch,  fastllm::make_backend};
