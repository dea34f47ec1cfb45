// Owned memory for weights, KV pages and workspaces: anonymous mappings, zero on first touch, huge pages where the
// kernel gives them. Pages are not resident until touched, so a planned but unused pool costs address space only.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace fastllm {

class Buffer {
 public:
  Buffer() = default;
  // Throws kOutOfMemory naming `what` and the size. Alignment is at least 4096, 2 MiB for large buffers.
  Buffer(int64_t bytes, const char* what);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] int64_t size() const { return size_; }

 private:
  std::byte* mapping_ = nullptr;
  std::size_t mapping_size_ = 0;
  std::byte* data_ = nullptr;
  int64_t size_ = 0;
};

// Hands out 64-byte aligned pieces of one buffer, first for planning (no buffer: only counts), then for real.
// The same code path sizes and places, so a plan cannot disagree with what is used.
class Arena {
 public:
  Arena() = default;  // planning: take() returns an empty span of the right size and counts
  explicit Arena(std::span<std::byte> memory) : memory_(memory), is_planning_(false) {}

  template <class T>
  T* take(int64_t count) {
    return static_cast<T*>(take_bytes(count, sizeof(T)));
  }
  [[nodiscard]] int64_t used() const { return used_; }

 private:
  void* take_bytes(int64_t count, int64_t element_size);

  std::span<std::byte> memory_;
  bool is_planning_ = true;
  int64_t used_ = 0;
};

}  // namespace fastllm
