// device="cuda:emulated".
#pragma once

#include <memory>

#include "cuda/fl/host.h"
#include "ops/ops.h"

namespace fastllm {

std::unique_ptr<Backend> make_emulated_cuda_backend(const fl::DeviceOptions& options);

}  // namespace fastllm
