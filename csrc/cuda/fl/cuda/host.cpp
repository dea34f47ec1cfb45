// The host's side of a GPU, with the CUDA runtime.
#include "cuda/fl/host.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <map>
#include <mutex>
#include <vector>

#include "core/error.h"

namespace fl {
namespace {

using fastllm::ErrorKind;
using fastllm::fail;

constexpr int64_t kDefaultSharedBytes = 48 << 10;  // what a launch may have without asking

std::string text_of(cudaError_t error) {
  return std::string(cudaGetErrorName(error)) + ", " + cudaGetErrorString(error);
}

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // forget it, where it can be forgotten
  fail(error == cudaErrorMemoryAllocation ? ErrorKind::kOutOfMemory : ErrorKind::kDevice, "cuda: ", what, ": ",
       text_of(error));
}

// Errors after which the driver refuses all further work of the process on the device.
bool loses_the_device(cudaError_t error) {
  switch (error) {
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorContextIsDestroyed:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorTensorMemoryLeak:
    case cudaErrorMpsClientTerminated:
    case cudaErrorExternalDevice:
    case cudaErrorUnknown:
      return true;
    default:
      return false;
  }
}

// Errors of a library that holds nothing for the chip, which the first call that names the kernel reports.
void check_was_built(cudaError_t error, const char* kernel, const DeviceProperties& device) {
  switch (error) {
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidDeviceFunction:
    case cudaErrorInvalidKernelImage:
    case cudaErrorInvalidPtx:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorJitCompilerNotFound:
    case cudaErrorJitCompilationDisabled:
      cudaGetLastError();
      fail(ErrorKind::kDevice, "cuda: kernel ", kernel, " was not built for sm_", device.arch, " (", device.name,
           "); build with FASTLLM_CUDA_ARCHS that includes it (", text_of(error), ")");
    default:
      return;
  }
}

// Makes a device current in this thread, and leaves the thread as it was.
class Current {
 public:
  explicit Current(int ordinal) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    if (previous_ == ordinal) return;
    check(cudaSetDevice(ordinal), "cudaSetDevice");
    is_changed_ = true;
  }
  ~Current() {
    if (is_changed_) cudaSetDevice(previous_);
  }
  Current(const Current&) = delete;
  Current& operator=(const Current&) = delete;

 private:
  int previous_ = 0;
  bool is_changed_ = false;
};

}  // namespace

struct Device::Impl {
  int ordinal = 0;
  DeviceProperties properties;
  std::mutex mutex;                             // of what follows
  std::map<const void*, int64_t> shared_bytes;  // granted to kernels so far, where above the default
};

Device::Device(const DeviceOptions& options) : impl_(std::make_unique<Impl>()) {
  impl_->ordinal = options.ordinal;
  const Current current(options.ordinal);
  cudaDeviceProp p{};
  check(cudaGetDeviceProperties(&p, options.ordinal), "cudaGetDeviceProperties");
  const char* sync = std::getenv("FASTLLM_CUDA_SYNC");
  impl_->properties = {p.name, p.major * 10 + p.minor, p.multiProcessorCount,
                       static_cast<int64_t>(p.sharedMemPerBlockOptin), sync != nullptr && std::string(sync) == "1"};
}
Device::~Device() = default;

const DeviceProperties& Device::properties() const { return impl_->properties; }

int64_t Device::free_bytes() const {
  const Current current(impl_->ordinal);
  std::size_t free = 0;
  std::size_t total = 0;
  check(cudaMemGetInfo(&free, &total), "cudaMemGetInfo");
  return static_cast<int64_t>(free);
}

void Device::set_simt_options(const simt::Options&) {}

void* Device::allocate(int64_t bytes, const char* what) {
  const Current current(impl_->ordinal);
  void* memory = nullptr;
  const cudaError_t error = cudaMalloc(&memory, static_cast<std::size_t>(std::max<int64_t>(bytes, 1)));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    fail(ErrorKind::kOutOfMemory, what, ": the device refused ", bytes, " bytes; ", free_bytes(), " are free");
  }
  check(error, what);
  return memory;
}

void Device::release(void* memory) noexcept { cudaFree(memory); }  // any current device will do; waits for its work

void* Device::allocate_pinned(int64_t bytes, const char* what) {
  const Current current(impl_->ordinal);
  void* memory = nullptr;
  const cudaError_t error = cudaMallocHost(&memory, static_cast<std::size_t>(std::max<int64_t>(bytes, 1)));
  if (error == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    fail(ErrorKind::kOutOfMemory, what, ": the system refused ", bytes, " bytes of page-locked memory");
  }
  check(error, what);
  return memory;
}

void Device::release_pinned(void* memory) noexcept { cudaFreeHost(memory); }

struct Graph::Impl {
  cudaGraphExec_t exec = nullptr;
  std::size_t num_nodes = 0;
  ~Impl() {
    if (exec != nullptr) cudaGraphExecDestroy(exec);
  }
};
Graph::Graph() : impl_(std::make_unique<Impl>()) {}
Graph::~Graph() = default;
Graph::Graph(Graph&&) noexcept = default;
Graph& Graph::operator=(Graph&&) noexcept = default;
int64_t Graph::num_launches() const { return static_cast<int64_t>(impl_->num_nodes); }

struct Stream::Impl {
  cudaStream_t own = nullptr;
  cudaStream_t stream = nullptr;  // its own, or the caller's
  cudaEvent_t switched = nullptr;
  // The last kernels that were launched since the stream was known to be well, for errors that show late.
  std::array<const char*, 16> recent{};
  std::size_t num_recent = 0;
  std::string broken;  // what went wrong for good: the device's context is lost with all that is on it

  ~Impl() {
    if (switched != nullptr) cudaEventDestroy(switched);
    if (own != nullptr) cudaStreamDestroy(own);
  }

  void check_usable() const {
    if (!broken.empty()) fail(ErrorKind::kDevice, broken);
  }
  // After a call that reports errors of earlier work.
  void check_work(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    if (!loses_the_device(error)) check(error, what);
    std::string names;
    for (std::size_t i = num_recent - std::min(num_recent, recent.size()); i < num_recent; ++i) {
      names += (names.empty() ? "" : ", ") + std::string(recent[i % recent.size()]);
    }
    broken = std::string("cuda: ") + what + ": " + text_of(error) +
             "; kernels that may have done it, oldest first: " + (names.empty() ? "none" : names) +
             ". FASTLLM_CUDA_SYNC=1 names the one; the process must be restarted to " + "use the device again";
    fail(ErrorKind::kDevice, broken);
  }
};

Stream::Stream(Device& device) : device_(device), impl_(std::make_unique<Impl>()) {
  const Current current(device.impl().ordinal);
  check(cudaStreamCreateWithFlags(&impl_->own, cudaStreamNonBlocking), "cudaStreamCreate");
  check(cudaEventCreateWithFlags(&impl_->switched, cudaEventDisableTiming), "cudaEventCreate");
  impl_->stream = impl_->own;
}
Stream::~Stream() = default;

void Stream::use(void* handle) {
  const cudaStream_t next = handle != nullptr ? static_cast<cudaStream_t>(handle) : impl_->own;
  if (next == impl_->stream) return;
  const cudaStream_t previous = std::exchange(impl_->stream, impl_->own);  // where it stays if what follows fails
  impl_->check_usable();
  const Current current(device_.impl().ordinal);
  check(cudaEventRecord(impl_->switched, previous), "cudaEventRecord");
  check(cudaStreamWaitEvent(next, impl_->switched, 0),
        "cudaStreamWaitEvent (a stream that is being captured cannot be used)");
  impl_->stream = next;
}

void Stream::upload(void* device, const void* host, int64_t bytes) {
  impl_->check_usable();
  impl_->check_work(
      cudaMemcpyAsync(device, host, static_cast<std::size_t>(bytes), cudaMemcpyHostToDevice, impl_->stream), "upload");
}
void Stream::download(void* host, const void* device, int64_t bytes) {
  impl_->check_usable();
  impl_->check_work(
      cudaMemcpyAsync(host, device, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToHost, impl_->stream),
      "download");
}
void Stream::copy(void* to, const void* from, int64_t bytes) {
  impl_->check_usable();
  impl_->check_work(cudaMemcpyAsync(to, from, static_cast<std::size_t>(bytes), cudaMemcpyDeviceToDevice, impl_->stream),
                    "copy");
}
void Stream::fill(void* device, uint8_t byte, int64_t bytes) {
  impl_->check_usable();
  impl_->check_work(cudaMemsetAsync(device, byte, static_cast<std::size_t>(bytes), impl_->stream), "fill");
}
void Stream::synchronize() {
  impl_->check_usable();
  impl_->check_work(cudaStreamSynchronize(impl_->stream), "synchronize");
  impl_->num_recent = 0;
}

void Stream::begin_capture() {
  impl_->check_usable();
  FASTLLM_CHECK(!device_.properties().is_synchronous, "begin_capture() where every launch is waited for");
  // The first launch of a kernel loads it, which stricter modes may take for an unsafe call; no other one is made here.
  check(cudaStreamBeginCapture(impl_->stream, cudaStreamCaptureModeRelaxed), "cudaStreamBeginCapture");
}
Graph Stream::end_capture() {
  cudaGraph_t recorded = nullptr;
  check(cudaStreamEndCapture(impl_->stream, &recorded), "cudaStreamEndCapture");
  Graph graph;
  const cudaError_t counted = cudaGraphGetNodes(recorded, nullptr, &graph.impl().num_nodes);
  const cudaError_t error = cudaGraphInstantiate(&graph.impl().exec, recorded, 0);
  cudaGraphDestroy(recorded);
  check(counted, "cudaGraphGetNodes");
  check(error, "cudaGraphInstantiate");
  return graph;
}
void Stream::abort_capture() noexcept {
  cudaGraph_t recorded = nullptr;
  if (cudaStreamEndCapture(impl_->stream, &recorded) == cudaSuccess && recorded != nullptr) {
    cudaGraphDestroy(recorded);
  }
  cudaGetLastError();  // a capture that an error has invalidated ends with one
}
void Stream::run(const Graph& graph) {
  impl_->check_usable();
  impl_->recent[impl_->num_recent++ % impl_->recent.size()] = "a captured step";
  impl_->check_work(cudaGraphLaunch(graph.impl().exec, impl_->stream), "graph launch");
}

void Stream::launch_cuda(const LaunchConfig& config, const void* kernel, std::span<void* const> arguments) {
  impl_->check_usable();
  Device::Impl& device = device_.impl();
  const Current current(device.ordinal);
  if (config.smem_bytes > kDefaultSharedBytes) {
    const std::scoped_lock lock(device.mutex);
    int64_t& granted = device.shared_bytes[kernel];
    if (granted < config.smem_bytes) {
      const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                     static_cast<int>(config.smem_bytes));
      check_was_built(error, config.name, device.properties);
      impl_->check_work(error, config.name);
      granted = config.smem_bytes;
    }
  }
  impl_->recent[impl_->num_recent++ % impl_->recent.size()] = config.name;
  const cudaError_t error = cudaLaunchKernel(kernel, dim3(config.grid.x, config.grid.y, config.grid.z),
                                             dim3(config.block), const_cast<void**>(arguments.data()),
                                             static_cast<std::size_t>(config.smem_bytes), impl_->stream);
  check_was_built(error, config.name, device.properties);
  impl_->check_work(error, config.name);
  if (device.properties.is_synchronous) {
    impl_->check_work(cudaStreamSynchronize(impl_->stream), config.name);
    impl_->num_recent = 0;
  }
}

void Stream::launch_emulated(const LaunchConfig& config, std::function<void()>, std::span<const Argument>) {
  fail(ErrorKind::kInternal, config.name, ": an emulated kernel on a GPU");
}

}  // namespace fl
