#include "bindings/backends.h"

#include <cstdlib>

#include "core/cpu_info.h"
#include "core/thread_pool.h"
#include "cpu/cpu_backend.h"
#include "cuda/emulated.h"
#include "reference/reference_backend.h"

namespace fastllm {

std::unique_ptr<Backend> make_backend(std::string_view device, int num_threads) {
  if (num_threads < 0 || num_threads > 1024) {
    fail(ErrorKind::kInvalidRequest, "num_threads = ", num_threads, " is outside [1, 1024]");
  }
  const int threads = num_threads == 0 ? default_num_threads() : num_threads;
  if (device == "reference") return make_reference_backend();
  if (device == "cpu" || device == "auto") return make_cpu_backend(threads, choose_isa(std::getenv("FASTLLM_CPU_ISA")));
  if (device.starts_with("cpu:")) return make_cpu_backend(threads, choose_isa(std::string(device.substr(4)).c_str()));
  if (device == "cuda:emulated") return make_emulated_cuda_backend({});
  fail(ErrorKind::kDevice, "device \"", device,
       "\" is not known; use \"auto\", \"cpu\", \"cpu:scalar|avx2|avx512|vnni|bf16\", \"cuda:emulated\" or "
       "\"reference\"");
}

}  // namespace fastllm
