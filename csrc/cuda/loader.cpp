#include "cuda/loader.h"

#include <dlfcn.h>

#include <filesystem>
#include <sstream>

#include "core/error.h"
#include "cuda/archs.h"
#include "cuda/plugin.h"

namespace fastllm {
namespace {

std::string version_text(int version) {  // 13010 -> 13.1
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// Of the driver, e.g. 13000; 0 without one.
int driver_version() {
  void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (driver == nullptr) return 0;
  int version = 0;
  using Get = int (*)(int*);
  const auto get = reinterpret_cast<Get>(dlsym(driver, "cuDriverGetVersion"));
  if (get == nullptr || get(&version) != 0) version = 0;
  return version;  // the driver stays loaded: unloading it is not supported
}

// Empty if the library holds code for the device.
std::string why_not_on(const CudaPlugin& plugin, int ordinal) {
  const int arch = plugin.arch(ordinal);
  if (any_runs_on(plugin.archs, arch)) return "";
  const std::string chip = std::to_string(arch);
  const std::string what_to_do = arch < 80 ? "its kernels need sm_80 or later"
                                           : "build it with `-C cmake.define.FASTLLM_CUDA_ARCHS=" + chip + "-real`";
  return "device " + std::to_string(ordinal) + " is an sm_" + chip + ", and libfastllm_cuda.so was built for " +
         plugin.archs + "; " + what_to_do;
}

struct Loaded {
  const CudaPlugin* plugin = nullptr;
  std::string why_not;
  int num_devices = 0;
};

Loaded load() {
  Dl_info here{};
  dladdr(reinterpret_cast<void*>(&why_no_cuda), &here);
  const auto path =
      std::filesystem::path(here.dli_fname != nullptr ? here.dli_fname : "").parent_path() / "libfastllm_cuda.so";
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) {
    return {
        nullptr,
        "this build of fastllm has no CUDA kernels; build one with `pip install . -C cmake.define.FASTLLM_CUDA=ON`"};
  }
  const int driver = driver_version();
  if (driver == 0) return {nullptr, "no NVIDIA driver was found (libcuda.so.1); install one"};
  void* library = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);  // stays for the life of the process
  if (library == nullptr) {
    return {nullptr, std::string("libfastllm_cuda.so cannot be loaded, install fastllm again: ") + dlerror()};
  }
  const auto* plugin = static_cast<const CudaPlugin*>(dlsym(library, kCudaPluginSymbol));
  if (plugin == nullptr || plugin->version != kCudaPluginVersion) {
    return {nullptr, path.string() + " is of another version of fastllm; install the two together"};
  }
  // Within one major version of CUDA any driver runs any runtime.
  if (driver / 1000 < plugin->runtime_version / 1000) {
    return {nullptr, "the NVIDIA driver knows CUDA " + version_text(driver) + ", fastllm was built with CUDA " +
                         version_text(plugin->runtime_version) + "; update the driver"};
  }
  std::string error;
  const int num_devices = plugin->num_devices(error);
  if (num_devices == 0) {
    return {nullptr,
            "the NVIDIA driver shows no device (CUDA_VISIBLE_DEVICES, or the container's settings, may hide it)" +
                (error.empty() ? "" : ": " + error)};
  }
  return {plugin, why_not_on(*plugin, 0), num_devices};
}

const Loaded& loaded() {
  static const Loaded once = load();
  return once;
}

}  // namespace

std::string why_no_cuda() { return loaded().why_not; }

std::unique_ptr<Backend> make_cuda_backend(int ordinal) {
  const Loaded& cuda = loaded();
  if (cuda.plugin == nullptr) fail(ErrorKind::kDevice, "device \"cuda\": ", cuda.why_not);
  if (ordinal < 0 || ordinal >= cuda.num_devices) {
    fail(ErrorKind::kDevice, "device \"cuda:", ordinal, "\": there are ", cuda.num_devices,
         " devices, numbered from 0");
  }
  const std::string why_not = why_not_on(*cuda.plugin, ordinal);
  if (!why_not.empty()) fail(ErrorKind::kDevice, "device \"cuda:", ordinal, "\": ", why_not);
  return std::unique_ptr<Backend>(cuda.plugin->make_backend(ordinal));
}

}  // namespace fastllm
