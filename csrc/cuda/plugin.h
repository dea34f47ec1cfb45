// The border of libfastllm_cuda.so: what the loader looks up in it. Errors cross it as fastllm::Error.
#pragma once

#include <string>

#include "ops/ops.h"

namespace fastllm {

// Of the types that cross the border: a hash of this file and of all that it includes (CMakeLists.txt). Both sides are
// built from one tree, and this refuses a stray library.
constexpr int kCudaPluginVersion = FASTLLM_CUDA_BORDER;

struct CudaPlugin {
  int version;
  int runtime_version;                     // of CUDA, e.g. 13000: the least that the driver must know
  const char* archs;                       // built for, e.g. "80-real, 90a-real, 80-virtual"
  int (*num_devices)(std::string& error);  // and why there are none, if CUDA says
  int (*arch)(int ordinal);                // of a device, e.g. 90
  Backend* (*make_backend)(int ordinal);
};

constexpr const char* kCudaPluginSymbol = "fastllm_cuda_plugin";

}  // namespace fastllm
