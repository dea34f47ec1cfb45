// Device strings: the one place that knows every backend.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "ops/ops.h"

namespace fastllm {

// The device that "auto" stands for on this machine; any other string as it is.
std::string_view resolve_device(std::string_view device);
// "auto" (a GPU where there is one, else the processor), "cuda", "cuda:N" (device N), "reference", "cpu" (best level of
// this machine or FASTLLM_CPU_ISA), "cpu:scalar|avx2|avx512|vnni|bf16", "cuda:emulated" (the kernels of csrc/cuda, run
// by the host: for tests). num_threads 0: default_num_threads().
std::unique_ptr<Backend> make_backend(std::string_view device, int num_threads);

}  // namespace fastllm
