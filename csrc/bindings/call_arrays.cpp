#include "bindings/call_arrays.h"

#include <memory>

#include "core/checked.h"

namespace nb = nanobind;

namespace fastllm {

DlpackDevice dlpack_device(const Backend& backend) {
  if (backend.shares_host_memory()) return {};
  const std::string name = backend.name();  // "cuda:emulated", "cuda:0", ...
  if (name == "cuda:emulated") return {kEmulatedDeviceType, 0};
  return {nb::device::cuda::value, std::stoi(name.substr(name.find(':') + 1))};
}

std::string name_of(const DlpackDevice& device) {
  if (device.is_host()) return "the host";
  if (device.type == kEmulatedDeviceType) return "cuda:emulated";
  if (device.type == nb::device::cuda::value) return "cuda:" + std::to_string(device.id);
  return "a device that DLPack numbers (" + std::to_string(device.type) + ", " + std::to_string(device.id) + ")";
}

void CallArrays::note(const DlpackDevice& at, const char* name) {
  if (first_.empty()) {
    at_ = at;
    first_ = name;
  }
  if (at == at_) return;
  fail(ErrorKind::kInvalidRequest, name, " is on ", name_of(at), " and ", first_, " on ", name_of(at_),
       "; all arrays of a call but its indices must be in one place");
}

void CallArrays::expect_usable_on(const DlpackDevice& device) const {
  if (at_.is_host() || at_ == device) return;
  fail(ErrorKind::kInvalidRequest, first_, " is on ", name_of(at_), ", and the operation runs on ", name_of(device),
       device.is_host() ? "; move the array, or give the device" : "; move the array there, or to the host");
}

nb::object empty_array(Backend& backend, const std::vector<int64_t>& shape, const std::string& dtype) {
  const std::optional<nb::dlpack::dtype> type = dtype == "float32" ? std::optional(nb::dtype<float>())
                                                : dtype == "int32" ? std::optional(nb::dtype<int32_t>())
                                                : dtype == "int64" ? std::optional(nb::dtype<int64_t>())
                                                                   : std::nullopt;
  if (!type.has_value()) {
    fail(ErrorKind::kInvalidRequest, "empty: dtype is ", dtype, ", expected float32, int32 or int64");
  }
  std::vector<std::size_t> sizes;
  int64_t count = 1;
  for (const int64_t size : shape) {
    if (size < 0) fail(ErrorKind::kInvalidRequest, "empty: a dimension is ", size, ", expected at least 0");
    count = checked_mul(count, size, "empty");
    sizes.push_back(static_cast<std::size_t>(size));
  }
  auto memory = std::make_unique<DeviceMemory>(
      backend.allocate(checked_mul(count, int64_t{type->bits / 8}, "empty"), "array", Contents::kUndefined));
  std::byte* data = memory->data();
  const nb::capsule owner(memory.release(), [](void* p) noexcept { delete static_cast<DeviceMemory*>(p); });
  const DlpackDevice device = dlpack_device(backend);
  return nb::cast(
      nb::ndarray<nb::array_api>(data, sizes.size(), sizes.data(), owner, nullptr, *type, device.type, device.id));
}

void copy_array(Backend& backend, const InArray& from, const OutArray& to) {
  const DType dtype = dtype_of(from, "copy: from");
  const auto count = static_cast<int64_t>(from.size());
  expect_contiguous(from, "copy: from", dtype, count);
  expect_contiguous(to, "copy: to", dtype, count);
  const DlpackDevice here = dlpack_device(backend);
  const int64_t bytes = count * size_of(dtype);
  if (device_of(from).is_host() && device_of(to) == here) return backend.upload(to.data(), from.data(), bytes);
  if (device_of(from) == here && device_of(to).is_host()) return backend.download(to.data(), from.data(), bytes);
  fail(ErrorKind::kInvalidRequest, "copy: from ", name_of(device_of(from)), " to ", name_of(device_of(to)),
       ", expected one of them with the host and one on ", name_of(here));
}

}  // namespace fastllm
