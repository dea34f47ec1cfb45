// The host's side of the emulator: memory with guards that the host cannot touch, one queue of work for all streams,
// graphs as lists.
#include "cuda/fl/host.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstring>
#include <deque>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

#include "core/checked.h"
#include "core/error.h"
#include "cuda/fl/simt/machine.h"

namespace fl {
namespace {

using fastllm::ErrorKind;
using fastllm::fail;

constexpr int64_t kTotalBytes = int64_t{4} << 30;
constexpr int64_t kGuardBytes = 4096;
constexpr int kPoison = 0xff;      // NaN in every float type
constexpr std::byte kGuard{0xfe};  // -1.7e38, NaN as f16: who reads it will be noticed

// [guard page, no access][guard bytes][bytes][guard bytes up to a page][guard page, no access]
struct Allocation {
  std::byte* mapping;
  int64_t mapping_bytes;
  std::byte* data;
  int64_t bytes;
  const char* what;
  bool is_released = false;  // and unmapped when no work is left that might use it

  [[nodiscard]] std::byte* inside_begin() const { return mapping + kGuardBytes; }
  [[nodiscard]] int64_t inside_bytes() const { return mapping_bytes - 2 * kGuardBytes; }
  void protect(int access) const { mprotect(inside_begin(), static_cast<std::size_t>(inside_bytes()), access); }
  void unmap() const { munmap(mapping, static_cast<std::size_t>(mapping_bytes)); }
};

DeviceProperties properties_of(int arch) {
  switch (arch) {
    case 80:
      return {"emulated sm_80", 80, 108, 163 << 10, false};
    case 89:
      return {"emulated sm_89", 89, 58, 99 << 10, false};
    case 90:
      return {"emulated sm_90", 90, 132, 227 << 10, false};
    default:
      fail(ErrorKind::kDevice, "emulator: sm_", arch, " is not known; use 80, 89 or 90");
  }
}

bool is_mapped(uintptr_t address) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  return msync(reinterpret_cast<void*>(address & ~(page - 1)), 1, MS_ASYNC) == 0;
}

}  // namespace

struct Device::Impl {
  DeviceProperties properties;
  simt::Options options;
  std::mutex mutex;                             // of all below
  std::map<uintptr_t, Allocation> allocations;  // by data
  int64_t used = 0;
  int accesses = 0;
  std::deque<std::function<void()>> queue;  // work of streams that is still to be done
  std::mutex launch_mutex;                  // one grid at a time: the stacks are shared
  simt::StackPool stacks;

  ~Impl() {
    for (const auto& [address, a] : allocations) a.unmap();
  }

  void run_or_queue(std::function<void()> work) {
    if (options.streams == simt::Streams::kAtOnce) return work();
    const std::scoped_lock lock(mutex);
    queue.push_back(std::move(work));
  }
  // Work stays in the queue while it is done. What is left after an error is forgotten.
  void run_queue() {
    std::unique_lock lock(mutex);
    try {
      while (!queue.empty()) {
        const std::function<void()>& work = queue.front();
        lock.unlock();
        work();
        lock.lock();
        queue.pop_front();
      }
    } catch (...) {
      lock.lock();
      queue.clear();
      unmap_released();
      throw;
    }
    unmap_released();
  }
  // Call with the mutex held.
  void unmap_released() {
    std::erase_if(allocations, [](const auto& entry) {
      if (entry.second.is_released) entry.second.unmap();
      return entry.second.is_released;
    });
  }

  // The allocation that holds [p, p + bytes), or nullptr. Call with the mutex held.
  const Allocation* find(const void* p, int64_t bytes) const {
    const auto address = reinterpret_cast<uintptr_t>(p);
    auto it = allocations.upper_bound(address);
    if (it == allocations.begin()) return nullptr;
    const Allocation& a = std::prev(it)->second;
    const auto offset = static_cast<int64_t>(address - reinterpret_cast<uintptr_t>(a.data));
    return offset <= a.bytes && bytes <= a.bytes - offset ? &a : nullptr;
  }
  void check_range(const void* p, int64_t bytes, const char* what) {
    const std::scoped_lock lock(mutex);
    if (find(p, bytes) != nullptr) return;
    fail(ErrorKind::kDevice, "emulator: ", what, " of ", bytes, " bytes at ", p,
         ": not within one allocation of the device");
  }
  void check_guards(const char* kernel) {
    const std::scoped_lock lock(mutex);
    for (const auto& [address, a] : allocations) {
      const auto is_changed = [](std::byte b) { return b != kGuard; };
      const std::byte* end = a.inside_begin() + a.inside_bytes();
      if (std::any_of(a.inside_begin(), a.data, is_changed)) {
        fail(ErrorKind::kDevice, "kernel ", kernel, ": wrote before \"", a.what, "\" (", a.bytes, " bytes)");
      }
      if (const auto* at = std::find_if(a.data + a.bytes, const_cast<std::byte*>(end), is_changed); at != end) {
        fail(ErrorKind::kDevice, "kernel ", kernel, ": wrote at offset ", at - a.data, " of \"", a.what, "\" (",
             a.bytes, " bytes)");
      }
    }
  }
  // Everything that looks like an address must be one of the device.
  void check_arguments(const char* kernel, std::span<const Stream::Argument> arguments) {
    const std::scoped_lock lock(mutex);
    for (std::size_t i = 0; i < arguments.size(); ++i) {
      for (std::size_t at = 0; at + sizeof(uintptr_t) <= arguments[i].bytes; at += sizeof(uintptr_t)) {
        uintptr_t word = 0;
        std::memcpy(&word, static_cast<const std::byte*>(arguments[i].data) + at, sizeof word);
        // Programs, heaps and mappings lie above 2^45. Below, two 32-bit numbers side by side would be taken for an
        // address, and AddressSanitizer has its shadow there, all of it mapped.
        const bool could_be_pointer = word >= uintptr_t{1} << 45 && word < uintptr_t{1} << 47;
        if (!could_be_pointer || find(reinterpret_cast<const void*>(word), 0) != nullptr || !is_mapped(word)) continue;
        fail(ErrorKind::kDevice, "kernel ", kernel, ": byte ", at, " of argument ", i,
             " is a pointer to host memory; upload what it points to");
      }
    }
  }
};

namespace {

// While one lives, device memory can be touched.
class Access {
 public:
  explicit Access(Device::Impl& device) : device_(device) {
    const std::scoped_lock lock(device_.mutex);
    if (device_.accesses++ == 0) {
      for (const auto& [address, a] : device_.allocations) a.protect(PROT_READ | PROT_WRITE);
    }
  }
  ~Access() {
    const std::scoped_lock lock(device_.mutex);
    if (--device_.accesses == 0) {
      for (const auto& [address, a] : device_.allocations) a.protect(PROT_NONE);
    }
  }
  Access(const Access&) = delete;
  Access& operator=(const Access&) = delete;

 private:
  Device::Impl& device_;
};

}  // namespace

Device::Device(const DeviceOptions& options) : impl_(std::make_unique<Impl>()) {
  impl_->properties = properties_of(options.arch);
  impl_->options = options.simt;
}
Device::~Device() = default;

const DeviceProperties& Device::properties() const { return impl_->properties; }
int64_t Device::free_bytes() const {
  const std::scoped_lock lock(impl_->mutex);
  return kTotalBytes - impl_->used;
}
void Device::set_simt_options(const simt::Options& options) { impl_->options = options; }

void* Device::allocate(int64_t bytes, const char* what) {
  const int64_t inside = fastllm::round_up(fastllm::checked_add(bytes, 2 * kGuardBytes, what), kGuardBytes);
  const int64_t mapping_bytes = inside + 2 * kGuardBytes;
  const std::scoped_lock lock(impl_->mutex);
  if (bytes > kTotalBytes - impl_->used) {
    fail(ErrorKind::kOutOfMemory, what, ": ", bytes, " bytes of ", kTotalBytes - impl_->used,
         " that the emulated device has left");
  }
  void* mapping = mmap(nullptr, static_cast<std::size_t>(mapping_bytes), PROT_NONE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapping == MAP_FAILED) fail(ErrorKind::kOutOfMemory, what, ": the system refused ", bytes, " bytes");
  Allocation a{static_cast<std::byte*>(mapping), mapping_bytes, nullptr, bytes, what, false};
  a.data = a.inside_begin() + kGuardBytes;
  a.protect(PROT_READ | PROT_WRITE);
  std::fill(a.inside_begin(), a.data, kGuard);
  std::memset(a.data, kPoison, static_cast<std::size_t>(bytes));
  std::fill(a.data + bytes, a.inside_begin() + a.inside_bytes(), kGuard);
  if (impl_->accesses == 0) a.protect(PROT_NONE);
  impl_->allocations.emplace(reinterpret_cast<uintptr_t>(a.data), a);
  impl_->used += bytes;
  return a.data;
}

void Device::release(void* memory) noexcept {
  const std::scoped_lock lock(impl_->mutex);
  const auto it = impl_->allocations.find(reinterpret_cast<uintptr_t>(memory));
  if (it == impl_->allocations.end()) return;
  impl_->used -= it->second.bytes;
  it->second.is_released = true;
  if (impl_->queue.empty()) impl_->unmap_released();
}

void* Device::allocate_pinned(int64_t bytes, const char*) {
  return ::operator new(static_cast<std::size_t>(bytes), std::align_val_t{kGuardBytes});
}
void Device::release_pinned(void* memory) noexcept { ::operator delete(memory, std::align_val_t{kGuardBytes}); }

struct Graph::Impl {
  std::vector<std::function<void()>> work;
};
Graph::Graph() : impl_(std::make_unique<Impl>()) {}
Graph::~Graph() = default;
Graph::Graph(Graph&&) noexcept = default;
Graph& Graph::operator=(Graph&&) noexcept = default;
int64_t Graph::num_launches() const { return std::ssize(impl_->work); }

struct Stream::Impl {
  Device::Impl& device;
  bool is_capturing = false;
  Graph captured;

  void run_or_record(std::function<void()> work) {
    if (is_capturing) {
      captured.impl().work.push_back(std::move(work));
    } else {
      device.run_or_queue(std::move(work));
    }
  }
};

Stream::Stream(Device& device) : device_(device), impl_(new Impl{device.impl(), false, {}}) {}
Stream::~Stream() = default;

void Stream::use(void*) {}

void Stream::upload(void* device, const void* host, int64_t bytes) {
  if (bytes == 0) return;
  device_.impl().check_range(device, bytes, "upload");
  impl_->run_or_record([=, this] {
    const Access access(device_.impl());
    std::memcpy(device, host, static_cast<std::size_t>(bytes));
  });
}
void Stream::download(void* host, const void* device, int64_t bytes) {
  if (bytes == 0) return;
  device_.impl().check_range(device, bytes, "download");
  impl_->run_or_record([=, this] {
    const Access access(device_.impl());
    std::memcpy(host, device, static_cast<std::size_t>(bytes));
  });
}
void Stream::copy(void* to, const void* from, int64_t bytes) {
  device_.impl().check_range(to, bytes, "copy to");
  device_.impl().check_range(from, bytes, "copy from");
  impl_->run_or_record([=, this] {
    const Access access(device_.impl());
    std::memmove(to, from, static_cast<std::size_t>(bytes));
  });
}
void Stream::fill(void* device, uint8_t byte, int64_t bytes) {
  device_.impl().check_range(device, bytes, "fill");
  impl_->run_or_record([=, this] {
    const Access access(device_.impl());
    std::memset(device, byte, static_cast<std::size_t>(bytes));
  });
}
void Stream::synchronize() {
  FASTLLM_CHECK(!impl_->is_capturing, "synchronize() within a capture");
  device_.impl().run_queue();
}

void Stream::begin_capture() {
  FASTLLM_CHECK(!impl_->is_capturing, "begin_capture() within a capture");
  impl_->is_capturing = true;
  impl_->captured = Graph();
}
Graph Stream::end_capture() {
  FASTLLM_CHECK(impl_->is_capturing, "end_capture() without begin_capture()");
  impl_->is_capturing = false;
  return std::move(impl_->captured);
}
void Stream::abort_capture() noexcept {
  impl_->is_capturing = false;
  impl_->captured = Graph();
}
void Stream::run(const Graph& graph) {
  FASTLLM_CHECK(!impl_->is_capturing, "a graph within a capture");
  for (const auto& work : graph.impl().work) device_.impl().run_or_queue(work);
}

void Stream::launch_cuda(const LaunchConfig& config, const void*, std::span<void* const>) {
  fail(ErrorKind::kInternal, config.name, ": a CUDA kernel on the emulator");
}

void Stream::launch_emulated(const LaunchConfig& config, std::function<void()> body,
                             std::span<const Argument> arguments) {
  Device::Impl& device = device_.impl();
  if (config.block > 1024) fail(ErrorKind::kDevice, "kernel ", config.name, ": ", config.block, " threads a block");
  if (config.grid.y > 65535 || config.grid.z > 65535 || config.grid.x > 0x7fffffffu) {
    fail(ErrorKind::kDevice, "kernel ", config.name, ": grid of ", config.grid.x, " x ", config.grid.y, " x ",
         config.grid.z, " blocks");
  }
  if (config.smem_bytes < 0 || config.smem_bytes > device.properties.smem_per_block) {
    fail(ErrorKind::kDevice, "kernel ", config.name, ": ", config.smem_bytes, " bytes of shared memory; sm_",
         device.properties.arch, " has ", device.properties.smem_per_block);
  }
  device.check_arguments(config.name, arguments);
  impl_->run_or_record([&device, config, kernel = std::move(body)] {
    const std::scoped_lock lock(device.launch_mutex);
    const Access access(device);
    simt::run_grid(config, device.options, device.stacks, kernel);
    device.check_guards(config.name);
  });
}

}  // namespace fl
