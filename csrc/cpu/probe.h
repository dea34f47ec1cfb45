// What this machine can do at most, measured in well under a second: the denominators of `fastllm bench` and `info`.
#pragma once

#include <cstddef>
#include <span>

#include "core/cpu_info.h"
#include "core/dtype.h"
#include "core/thread_pool.h"

namespace fastllm {

// Bytes per second that all threads of the pool together read from memory; the best of a few passes.
double measure_read_bandwidth(ThreadPool& pool);
// The same of memory that is there, of its first 384 MB at most: from a cache, if all of it fits into one. 0 for less
// than 256 KB.
double measure_read_bandwidth(ThreadPool& pool, std::span<const std::byte> memory);

// Operations (two for each multiply-add) per second of all threads: dot products of bf16 for kBF16 and of bytes for kU8
// (without VNNI in pairs) on levels that have them, otherwise float multiply-adds.
double measure_peak_ops(ThreadPool& pool, CpuIsa isa, DType dtype);

}  // namespace fastllm
