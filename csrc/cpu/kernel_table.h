// Which compiled kernels run on a level.
#pragma once

#include "core/cpu_info.h"
#include "cpu/kernels.h"

namespace fastllm::cpu {

// Throws kDevice for a level that this build lacks.
const KernelTable& kernels_for(CpuIsa isa);

}  // namespace fastllm::cpu
