// The plain kernel: every type of cache, every head size.
#pragma once

#include "cuda/fl/host.h"
#include "ops/ops.h"

namespace fastllm::cuda {

void attention_simple(fl::Stream& stream, const PagedAttentionArgs& args);

}  // namespace fastllm::cuda
