#include "failing_new.h"

#include <atomic>
#include <cstdlib>
#include <new>

#include "core/fault.h"

namespace fastllm::test {
namespace {

std::atomic<int64_t> num_live{0};
thread_local int num_scopes = 0;

void* try_allocate(std::size_t size, std::size_t alignment) noexcept {
  if (num_scopes == 0 && fault::should_fail(fault::Point::kAlloc)) return nullptr;
  // aligned_alloc wants a multiple of the alignment.
  const std::size_t rounded = (size + alignment - 1) / alignment * alignment;
  void* const memory = alignment > __STDCPP_DEFAULT_NEW_ALIGNMENT__ ? std::aligned_alloc(alignment, rounded)
                                                                    : std::malloc(size == 0 ? 1 : size);
  if (memory != nullptr) ++num_live;
  return memory;
}

void* allocate(std::size_t size, std::size_t alignment) {
  void* const memory = try_allocate(size, alignment);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}

void release(void* memory) {
  if (memory == nullptr) return;
  --num_live;
  std::free(memory);
}

}  // namespace

int64_t num_live_allocations() { return num_live; }

NoFaults::NoFaults() { ++num_scopes; }
NoFaults::~NoFaults() { --num_scopes; }

}  // namespace fastllm::test

void* operator new(std::size_t size) { return fastllm::test::allocate(size, 1); }
void* operator new[](std::size_t size) { return fastllm::test::allocate(size, 1); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return fastllm::test::allocate(size, static_cast<std::size_t>(alignment));
}
void* operator new[](std::size_t size, std::align_val_t alignment) {
  return fastllm::test::allocate(size, static_cast<std::size_t>(alignment));
}
void* operator new(std::size_t size, const std::nothrow_t&) noexcept { return fastllm::test::try_allocate(size, 1); }
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept { return fastllm::test::try_allocate(size, 1); }
void operator delete(void* memory, const std::nothrow_t&) noexcept { fastllm::test::release(memory); }
void operator delete[](void* memory, const std::nothrow_t&) noexcept { fastllm::test::release(memory); }
void operator delete(void* memory) noexcept { fastllm::test::release(memory); }
void operator delete[](void* memory) noexcept { fastllm::test::release(memory); }
void operator delete(void* memory, std::size_t) noexcept { fastllm::test::release(memory); }
void operator delete[](void* memory, std::size_t) noexcept { fastllm::test::release(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { fastllm::test::release(memory); }
void operator delete[](void* memory, std::align_val_t) noexcept { fastllm::test::release(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { fastllm::test::release(memory); }
void operator delete[](void* memory, std::size_t, std::align_val_t) noexcept { fastllm::test::release(memory); }
