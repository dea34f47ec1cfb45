// What this machine can do at most, measured in well under a second: the denominators of `fastllm bench` and `info`.
#pragma once

#include "core/cpu_info.h"
#include "core/dtype.h"
#include "core/thread_pool.h"

namespace fastllm {

// Bytes per second that all threads of the pool together read from memory; the best of a few passes.
double measure_read_bandwidth(ThreadPool& pool);

// Operations (two for each multiply-add) per second of all threads: dot products of bf16 for kBF16 and of bytes for kU8
// on levels that have them, otherwise float multiply-adds.
double measure_peak_ops(ThreadPool& pool, CpuIsa isa, DType dtype);

}  // namespace fastllm
