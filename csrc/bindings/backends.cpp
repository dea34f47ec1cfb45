#include "bindings/backends.h"

#include "reference/reference_backend.h"

namespace fastllm {

std::unique_ptr<Backend> make_backend(std::string_view device, int num_threads) {
  if (num_threads < 0 || num_threads > 1024) {
    fail(ErrorKind::kInvalidRequest, "num_threads = ", num_threads, " is outside [1, 1024]");
  }
  if (device == "reference" || device == "auto") return make_reference_backend();
  fail(ErrorKind::kDevice, "device \"", device, "\" is not known; use \"auto\" or \"reference\"");
}

}  // namespace fastllm
