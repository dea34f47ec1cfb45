// Integer weights to and from their panels (layout: kernels.h).
#pragma once

#include "cpu/cpu_backend.h"

namespace fastllm::cpu {

// Row n of the only expert: (code - zero) * scale * factor.
void unpack_row(const PackedWeight& weight, const PanelLayout& layout, int64_t n, float factor, float* out);

}  // namespace fastllm::cpu
