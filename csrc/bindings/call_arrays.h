// Where the arrays of one call lie: all with the host, or all on the backend's device, where they are used as they are,
// in the stream of the caller's work there. Index arrays (as_integers) always come from the host, which checks what is
// in them.
#pragma once

#include <cstdint>
#include <string>

#include "bindings/ops_arrays.h"
#include "core/error.h"
#include "ops/ops.h"

namespace fastllm {

// As DLPack numbers devices.
struct DlpackDevice {
  int type = nanobind::device::cpu::value;
  int id = 0;

  bool operator==(const DlpackDevice&) const = default;
  [[nodiscard]] bool is_host() const { return *this == DlpackDevice{}; }
};

// The type for the emulator's memory: kDLExtDev, which DLPack has "for quickly testing extension devices".
constexpr int kEmulatedDeviceType = 12;

DlpackDevice dlpack_device(const Backend& backend);
template <class Array>
DlpackDevice device_of(const Array& a) {
  return {a.device_type(), a.device_type() == nanobind::device::cpu::value ? 0 : a.device_id()};
}
std::string name_of(const DlpackDevice& device);

class CallArrays {
 public:
  // The handle of the caller's stream (1: the device's default stream); 0: no array is on a device.
  explicit CallArrays(uintptr_t stream) : stream_(reinterpret_cast<void*>(stream)) {}

  template <class Array>
  Mat mat(const Array& a, const char* name) {
    note(a, name);
    return as_mat(a, name);
  }
  template <class Array>
  auto* floats(const Array& a, const char* name, int64_t count) {
    note(a, name);
    return as_floats(a, name, count);
  }
  template <class Array>
  auto* integers_out(const Array& a, const char* name, int64_t count) {
    note(a, name);
    expect_contiguous(a, name, DType::kI32, count);
    return static_cast<int32_t*>(a.data());
  }

  // Throws unless the arrays are with the host or on `device`.
  void expect_usable_on(const DlpackDevice& device) const;
  [[nodiscard]] bool are_on_device() const { return !at_.is_host(); }
  [[nodiscard]] void* stream() const { return stream_; }

 private:
  template <class Array>
  void note(const std::optional<Array>& a, const char* name) {
    if (a.has_value()) note(*a, name);
  }
  template <class Array>
  void note(const Array& a, const char* name) {
    note(device_of(a), name);
  }
  void note(const DlpackDevice& at, const char* name);

  void* stream_;
  DlpackDevice at_;
  std::string first_;  // the array that was seen first
};

// Puts the work of a backend into a stream of the caller's while it lives. nullptr: its own.
class OnStream {
 public:
  OnStream(Backend& backend, void* stream) : backend_(backend) { backend_.use_stream(stream); }
  ~OnStream() {
    try {
      backend_.use_stream(nullptr);
    } catch (...) {  // NOLINT(bugprone-empty-catch): a device that fails here fails the next call, with the reason
    }
  }
  OnStream(const OnStream&) = delete;
  OnStream& operator=(const OnStream&) = delete;

 private:
  Backend& backend_;
};

// A new array on the device of a backend, of float32, int32 or int64, not initialised.
nanobind::object empty_array(Backend& backend, const std::vector<int64_t>& shape, const std::string& dtype);
// Copies between arrays of one size and type, of which one is with the host and one on the backend's device.
void copy_array(Backend& backend, const InArray& from, const OutArray& to);

}  // namespace fastllm
