// Fibers: stacks that take turns on one OS thread. A switch saves the callee-saved registers and nothing else.
#pragma once

#include <cstddef>
#include <vector>

namespace fl::simt {

// Stacks with a guard page below each, kept for reuse.
class StackPool {
 public:
  StackPool() = default;
  ~StackPool();
  StackPool(const StackPool&) = delete;
  StackPool& operator=(const StackPool&) = delete;

  // Top of the i-th stack (16-byte aligned); made on first use. Throws kOutOfMemory.
  std::byte* top(std::size_t i);
  [[nodiscard]] static std::size_t stack_bytes();

 private:
  std::vector<std::byte*> mappings_;
};

// A place to continue: a saved stack pointer, with what AddressSanitizer wants to know beside it.
struct Context {
  void* sp = nullptr;
  void* fake_stack = nullptr;
  const void* stack_bottom = nullptr;
  std::size_t stack_size = 0;
};

// Makes `context` begin `entry` on the given stack at its first switch. `entry` never returns.
void prepare(Context& context, std::byte* stack_top, void (*entry)());
// Saves the running fiber in `from` and continues `to`.
void switch_to(Context& from, Context& to);
// The first thing that runs on a fresh fiber, given who switched to it.
void arrived_first(Context& from);

}  // namespace fl::simt
