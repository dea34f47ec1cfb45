// Opens a CUDA device and prints how it went: tests/native/test_cuda_loader.py puts libraries beside it.
//   cuda_loader [ORDINAL]
#include <cstdio>
#include <cstdlib>

#include "core/error.h"
#include "cuda/loader.h"

int main(int argc, char** argv) {
  std::printf("auto: %s\n", fastllm::why_no_cuda().empty() ? "cuda" : "cpu");
  try {
    const auto backend = fastllm::make_cuda_backend(argc > 1 ? std::atoi(argv[1]) : 0);
    std::printf("opened: %s\n", backend->name());
  } catch (const fastllm::Error& error) {
    std::printf("%s: %s\n", error.kind() == fastllm::ErrorKind::kDevice ? "DeviceError" : "another error",
                error.what());
  }
}
