#include "bindings/backends.h"

#include <charconv>
#include <cstdlib>

#include "core/cpu_info.h"
#include "core/thread_pool.h"
#include "cpu/cpu_backend.h"
#include "cuda/emulated.h"
#include "cuda/loader.h"
#include "reference/reference_backend.h"

namespace fastllm {

std::string_view resolve_device(std::string_view device) {
  if (device != "auto") return device;
  return why_no_cuda().empty() ? "cuda" : "cpu";
}

std::unique_ptr<Backend> make_backend(std::string_view device, int num_threads) {
  if (num_threads < 0 || num_threads > 1024) {
    fail(ErrorKind::kInvalidRequest, "num_threads = ", num_threads, " is outside [1, 1024]");
  }
  const int threads = num_threads == 0 ? default_num_threads() : num_threads;
  if (device == "reference") return make_reference_backend();
  if (device == "auto") return make_backend(resolve_device(device), num_threads);
  if (device == "cpu") return make_cpu_backend(threads, choose_isa(std::getenv("FASTLLM_CPU_ISA")));
  if (device.starts_with("cpu:")) return make_cpu_backend(threads, choose_isa(std::string(device.substr(4)).c_str()));
  if (device == "cuda") return make_cuda_backend(0);
  if (device == "cuda:emulated") {
    // As on a chip, work is done while the host goes on: what it changes too early shows.
    return make_emulated_cuda_backend({.simt = {.streams = fl::simt::Streams::kAtWait}});
  }
  if (device.starts_with("cuda:")) {
    int ordinal = -1;
    const auto [end, error] = std::from_chars(device.data() + 5, device.data() + device.size(), ordinal);
    if (error == std::errc{} && end == device.data() + device.size()) return make_cuda_backend(ordinal);
  }
  fail(ErrorKind::kDevice, "device \"", device,
       "\" is not known; use \"auto\", \"cpu\", \"cpu:scalar|avx2|avx512|vnni|bf16\", \"cuda\", \"cuda:N\", "
       "\"cuda:emulated\" or "
       "\"reference\"");
}

}  // namespace fastllm
