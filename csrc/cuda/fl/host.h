// The host's side of a device: memory, streams, graphs, launches. No CUDA header here; fl/cuda/host.cpp implements it
// with the CUDA runtime, fl/simt/host.cpp on emulated memory. Every call is checked and throws Error(kDevice) or
// Error(kOutOfMemory).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "cuda/fl/launch_config.h"
#include "cuda/fl/simt/options.h"

namespace fl {

struct DeviceOptions {
  int ordinal = 0;     // of the GPU; the emulator has one device
  int arch = 90;       // emulated chip: 80, 89 or 90, for its limits
  simt::Options simt;  // of the emulator
};

struct DeviceProperties {
  std::string name;
  int arch = 0;  // 80, 89, 90, ...
  int num_sms = 0;
  int64_t smem_per_block = 0;   // most dynamic shared memory of a launch
  bool is_synchronous = false;  // every launch is waited for, so that an error is found at its kernel; no captures
};

// Thread contract: every function may be called from any thread.
class Device {
 public:
  explicit Device(const DeviceOptions& options);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  [[nodiscard]] const DeviceProperties& properties() const;
  [[nodiscard]] int64_t free_bytes() const;

  // Aligned to 256 bytes. The emulator fills new memory with 0xff, puts guards around it, and takes all access from the
  // host except within the copies of a Stream.
  void* allocate(int64_t bytes, const char* what);
  void release(void* memory) noexcept;  // work that was given to a stream before may still use it
  // Page-locked memory of the host, which the device reads and writes by itself.
  void* allocate_pinned(int64_t bytes, const char* what);
  void release_pinned(void* memory) noexcept;
  // Options of later launches (emulator only).
  void set_simt_options(const simt::Options& options);

  struct Impl;
  [[nodiscard]] Impl& impl() const { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

// Owned memory, of a device or pinned.
template <void* (Device::*allocate)(int64_t, const char*), void (Device::*release)(void*) noexcept>
class OwnedBuffer {
 public:
  OwnedBuffer() = default;
  OwnedBuffer(Device& device, int64_t bytes, const char* what)
      : device_(&device), data_(static_cast<std::byte*>((device.*allocate)(bytes, what))), size_(bytes) {}
  ~OwnedBuffer() {
    if (data_ != nullptr) (device_->*release)(data_);
  }
  OwnedBuffer(OwnedBuffer&& other) noexcept { swap(other); }
  OwnedBuffer& operator=(OwnedBuffer&& other) noexcept {
    swap(other);
    return *this;
  }
  OwnedBuffer(const OwnedBuffer&) = delete;
  OwnedBuffer& operator=(const OwnedBuffer&) = delete;

  [[nodiscard]] std::byte* data() const { return data_; }
  [[nodiscard]] int64_t size() const { return size_; }

 private:
  void swap(OwnedBuffer& other) noexcept {
    std::swap(device_, other.device_);
    std::swap(data_, other.data_);
    std::swap(size_, other.size_);
  }
  Device* device_ = nullptr;
  std::byte* data_ = nullptr;
  int64_t size_ = 0;
};
using DeviceBuffer = OwnedBuffer<&Device::allocate, &Device::release>;
using PinnedBuffer = OwnedBuffer<&Device::allocate_pinned, &Device::release_pinned>;

// Work recorded once and run many times with the same addresses.
class Graph {
 public:
  Graph();
  ~Graph();
  Graph(Graph&&) noexcept;
  Graph& operator=(Graph&&) noexcept;

  [[nodiscard]] int64_t num_launches() const;  // kernels and copies

  struct Impl;
  [[nodiscard]] Impl& impl() const { return *impl_; }

 private:
  std::unique_ptr<Impl> impl_;
};

// An ordered queue of work. When the emulator does it: simt::Options. Thread contract: one thread at a time.
class Stream {
 public:
  explicit Stream(Device& device);
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  [[nodiscard]] Device& device() const { return device_; }

  // Later work goes into a stream of the caller's (cudaStream_t), behind what is in this one; nullptr: back into this
  // one, behind what went there. The emulator has one order of work, and nothing to do.
  void use(void* handle);

  // Host memory must stay as it is until the stream has come past the copy. From or to pinned memory the call returns
  // at once.
  void upload(void* device, const void* host, int64_t bytes);
  void download(void* host, const void* device, int64_t bytes);
  void copy(void* to, const void* from, int64_t bytes);  // on the device
  void fill(void* device, uint8_t byte, int64_t bytes);
  void synchronize();  // returns when all is done; throws what went wrong

  // Between the two, work is recorded and not done. abort_capture() forgets what was recorded, after an error.
  void begin_capture();
  [[nodiscard]] Graph end_capture();
  void abort_capture() noexcept;
  void run(const Graph& graph);

  // For fl::launch.
  struct Argument {
    void* data;
    std::size_t bytes;
  };
  void launch_cuda(const LaunchConfig& config, const void* kernel, std::span<void* const> arguments);
  void launch_emulated(const LaunchConfig& config, std::function<void()> body, std::span<const Argument> arguments);

  struct Impl;
  [[nodiscard]] Impl& impl() const { return *impl_; }

 private:
  Device& device_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fl
