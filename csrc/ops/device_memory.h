// Memory of a backend's device, owned. On the host it is a Buffer.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>

namespace fastllm {

class DeviceMemory {
 public:
  DeviceMemory() = default;
  // `owner` frees the memory when the last copy of it goes.
  DeviceMemory(std::shared_ptr<void> owner, std::byte* data, int64_t size)
      : owner_(std::move(owner)), data_(data), size_(size) {}
  DeviceMemory(DeviceMemory&&) noexcept = default;
  DeviceMemory& operator=(DeviceMemory&&) noexcept = default;
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  // An address of the device: only a host backend's can be read here.
  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] int64_t size() const { return size_; }

 private:
  std::shared_ptr<void> owner_;
  std::byte* data_ = nullptr;
  int64_t size_ = 0;
};

// What fresh memory holds.
enum class Contents : uint8_t { kZero, kUndefined };

}  // namespace fastllm
