// Arguments of one operation in memory of the backend. Arrays that lie there already pass through; those of the host
// are copied, unless the backend shares its memory.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#include "core/checked.h"
#include "ops/ops.h"

namespace fastllm {

class OnDevice {
 public:
  OnDevice(Backend& backend, bool are_there) : backend_(backend), pass_(are_there || backend.shares_host_memory()) {}

  // nullptr stays nullptr.
  const float* in(const float* array, int64_t count) { return pass_ ? array : indices(array, count); }
  // A copy of `count` elements that the host has read.
  template <class T>
  const T* indices(const T* host, int64_t count) {
    if (backend_.shares_host_memory() || host == nullptr) return host;
    T* device = take<T>(count);
    backend_.upload(device, host, count * static_cast<int64_t>(sizeof(T)));
    return device;
  }
  // Memory that finish() copies to `host`.
  template <class T>
  T* out(T* host, int64_t count) {
    if (pass_ || host == nullptr) return host;
    T* device = take<T>(count);
    results_.emplace_back([=, this] { backend_.download(host, device, count * static_cast<int64_t>(sizeof(T))); });
    return device;
  }

  Mat in(const Mat& host) { return pass_ || host.data == nullptr ? host : copy_of(host); }
  Mat out(const Mat& host) {
    if (pass_ || host.data == nullptr) return host;
    return returned(like(host), host);
  }
  Mat inout(const Mat& host) {
    if (pass_ || host.data == nullptr) return host;
    return returned(copy_of(host), host);
  }

  void finish() {
    for (const auto& result : results_) result();
  }

 private:
  template <class T>
  T* take(int64_t count) {
    memory_.push_back(backend_.allocate(checked_mul(count, static_cast<int64_t>(sizeof(T)), "an argument"),
                                        "argument of an operation", Contents::kUndefined));
    return reinterpret_cast<T*>(memory_.back().data());
  }

  // Rows that lie apart on the host do so on the device, by a multiple of 16 bytes.
  Mat like(const Mat& host) {
    Mat device = host;
    if (host.stride != host.cols) device.stride = round_up(host.cols, 4) + 4;
    device.data =
        take<std::byte>(checked_mul(checked_mul(host.rows, device.stride, "Mat"), size_of(host.dtype), "Mat"));
    return device;
  }
  Mat copy_of(const Mat& host) {
    const Mat device = like(host);
    for_rows(device, host, [this](std::byte* d, std::byte* h, int64_t bytes) { backend_.upload(d, h, bytes); });
    return device;
  }
  Mat returned(const Mat& device, const Mat& host) {
    results_.emplace_back([=, this] {
      for_rows(device, host, [this](std::byte* d, std::byte* h, int64_t bytes) { backend_.download(h, d, bytes); });
    });
    return device;
  }
  template <class F>
  static void for_rows(const Mat& device, const Mat& host, F f) {
    const bool is_whole = device.stride == device.cols && host.stride == host.cols;
    const int64_t bytes = host.cols * size_of(host.dtype) * (is_whole ? host.rows : 1);
    for (int64_t i = 0; i < (is_whole ? 1 : host.rows); ++i) {
      f(static_cast<std::byte*>(device.data) + i * device.stride * size_of(device.dtype),
        static_cast<std::byte*>(host.data) + i * host.stride * size_of(host.dtype), bytes);
    }
  }

  Backend& backend_;
  bool pass_;
  std::vector<DeviceMemory> memory_;
  std::vector<std::function<void()>> results_;
};

}  // namespace fastllm
