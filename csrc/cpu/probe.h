// What this machine can do at most, measured in well under a second: the denominators of `fastllm bench` and `info`.
#pragma once

#include "core/cpu_info.h"
#include "core/dtype.h"
#include "core/thread_pool.h"

namespace fastllm {

// Bytes per second that all threads of the pool together read from memory; the best of a few passes.
double measure_read_bandwidth(ThreadPool& pool);

// Floating point operations per second of all threads: bf16 dot products for kBF16 on a level that has them, otherwise
// float multiply-adds (which is what such a level computes with).
double measure_peak_flops(ThreadPool& pool, CpuIsa isa, DType dtype);

}  // namespace fastllm
