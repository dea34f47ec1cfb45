// A libfastllm_cuda.so without CUDA, for tests of the loader: what it says of itself comes from the environment.
#include <cstdlib>

#include "cuda/plugin.h"
#include "reference/reference_backend.h"

namespace {

int number(const char* name, int otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr ? std::atoi(value) : otherwise;
}
const char* text(const char* name, const char* otherwise) {
  const char* value = std::getenv(name);
  return value != nullptr ? value : otherwise;
}

}  // namespace

extern "C" __attribute__((visibility("default"))) const fastllm::CudaPlugin fastllm_cuda_plugin;
const fastllm::CudaPlugin fastllm_cuda_plugin = {
    number("FAKE_VERSION", fastllm::kCudaPluginVersion),
    number("FAKE_RUNTIME", 13000),
    text("FAKE_ARCHS", "80-real, 89-real, 90a-real, 80-virtual"),
    [](std::string& error) {
      error = text("FAKE_ERROR", "");
      return number("FAKE_DEVICES", 1);
    },
    [](int) { return number("FAKE_ARCH", 90); },
    [](int) -> fastllm::Backend* { return fastllm::make_reference_backend().release(); },
};
