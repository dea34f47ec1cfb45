// The memory half of backends whose device is the host.
#pragma once

#include <cstring>
#include <memory>

#include "core/buffer.h"
#include "ops/ops.h"

namespace fastllm {

class HostBackend : public Backend {
 public:
  [[nodiscard]] bool shares_host_memory() const final { return true; }
  [[nodiscard]] int64_t free_bytes() const final { return 0; }
  [[nodiscard]] DeviceMemory allocate(int64_t bytes, const char* what, Contents) final {
    auto buffer = std::make_shared<Buffer>(bytes, what);  // zero in any case, and not resident until touched
    std::byte* data = buffer->data();
    return {std::move(buffer), data, bytes};
  }
  void use_stream(void*) final {}
  [[nodiscard]] bool has_graphs() const final { return false; }
  void record(uint64_t, const std::function<void()>&) final { fail(ErrorKind::kInternal, name(), " has no graphs"); }
  void run(uint64_t, const std::function<void()>&) final { fail(ErrorKind::kInternal, name(), " has no graphs"); }
  [[nodiscard]] int64_t num_graphs() const final { return 0; }
  void wait() final {}
  void upload(void* to, const void* from, int64_t bytes) final {
    if (bytes > 0) std::memcpy(to, from, static_cast<std::size_t>(bytes));
  }
  void download(void* to, const void* from, int64_t bytes) final {
    if (bytes > 0) std::memcpy(to, from, static_cast<std::size_t>(bytes));
  }
};

}  // namespace fastllm
