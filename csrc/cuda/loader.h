// Finds libfastllm_cuda.so beside the extension, and a driver for it.
#pragma once

#include <memory>
#include <string>

#include "ops/ops.h"

namespace fastllm {

// Empty when device="cuda" can be opened; else why not and what to do.
std::string why_no_cuda();
// Throws kDevice with that text, or for an ordinal that does not exist.
std::unique_ptr<Backend> make_cuda_backend(int ordinal);

}  // namespace fastllm
