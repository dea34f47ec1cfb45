#include "cuda/fl/simt/fiber.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>

#include "core/error.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>

#include <memory>
#endif

// fl_simt_switch(void** save, void* load): pushes the callee-saved registers, stores the stack pointer in *save, takes
// `load` as the stack pointer and pops the same registers from there.
#if defined(__x86_64__)
extern "C" void fl_simt_switch(void** save, void* load);
asm(R"(
.text
.hidden fl_simt_switch
.globl fl_simt_switch
.type fl_simt_switch, @function
fl_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size fl_simt_switch, .-fl_simt_switch
)");
#elif defined(__aarch64__)
extern "C" void fl_simt_switch(void** save, void* load);
asm(R"(
.text
.hidden fl_simt_switch
.globl fl_simt_switch
.type fl_simt_switch, %function
fl_simt_switch:
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
.size fl_simt_switch, .-fl_simt_switch
)");
#endif

namespace fl::simt {
namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kStackBytes = 256 << 10;
#else
constexpr std::size_t kStackBytes = 64 << 10;
#endif

std::size_t os_page() { return static_cast<std::size_t>(sysconf(_SC_PAGESIZE)); }

void raw_switch(Context& from, Context& to) {
#if defined(__x86_64__) || defined(__aarch64__)
  fl_simt_switch(&from.sp, to.sp);
#else
  if (from.sp == nullptr) from.sp = new ucontext_t;  // of the scheduler and of fibers; kept with the Context
  swapcontext(static_cast<ucontext_t*>(from.sp), static_cast<ucontext_t*>(to.sp));
#endif
}

// A fiber is left for good in the middle of its frames, and AddressSanitizer keeps what surrounded their variables
// poisoned: for whoever gets this stack, or this address, next.
void unpoison([[maybe_unused]] std::byte* stack) {
#if defined(__SANITIZE_ADDRESS__)
  __asan_unpoison_memory_region(stack, kStackBytes);
#endif
}

}  // namespace

std::size_t StackPool::stack_bytes() { return kStackBytes; }

StackPool::~StackPool() {
  for (std::byte* mapping : mappings_) {
    unpoison(mapping + os_page());
    munmap(mapping, kStackBytes + os_page());
  }
}

std::byte* StackPool::top(std::size_t i) {
  while (mappings_.size() <= i) {
    void* mapping = mmap(nullptr, kStackBytes + os_page(), PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (mapping == MAP_FAILED || mprotect(mapping, os_page(), PROT_NONE) != 0) {
      fastllm::fail(fastllm::ErrorKind::kOutOfMemory, "emulator: the system refused a stack of ", kStackBytes,
                    " bytes for thread ", i, " of a block");
    }
    mappings_.push_back(static_cast<std::byte*>(mapping));
  }
  return mappings_[i] + os_page() + kStackBytes;
}

void prepare(Context& context, std::byte* stack_top, void (*entry)()) {
  unpoison(stack_top - kStackBytes);
  context.fake_stack = nullptr;
  context.stack_bottom = stack_top - kStackBytes;
  context.stack_size = kStackBytes;
#if defined(__x86_64__)
  // Six registers, the address that `ret` takes, and the slot of a return address that does not exist: at the entry the
  // stack pointer is 8 modulo 16, as after a call.
  auto* words = reinterpret_cast<uintptr_t*>(stack_top) - 8;
  for (int i = 0; i < 8; ++i) words[i] = 0;
  words[6] = reinterpret_cast<uintptr_t>(entry);
  context.sp = words;
#elif defined(__aarch64__)
  auto* words = reinterpret_cast<uintptr_t*>(stack_top) - 20;
  for (int i = 0; i < 20; ++i) words[i] = 0;
  words[11] = reinterpret_cast<uintptr_t>(entry);  // x30
  context.sp = words;
#else
  if (context.sp == nullptr) context.sp = new ucontext_t;
  auto* u = static_cast<ucontext_t*>(context.sp);
  getcontext(u);
  u->uc_stack.ss_sp = stack_top - kStackBytes;
  u->uc_stack.ss_size = kStackBytes;
  u->uc_link = nullptr;
  makecontext(u, entry, 0);
#endif
}

void switch_to(Context& from, Context& to) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&from.fake_stack, to.stack_bottom, to.stack_size);
#endif
  raw_switch(from, to);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake_stack, nullptr, nullptr);
#endif
}

void arrived_first([[maybe_unused]] Context& from) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &from.stack_bottom, &from.stack_size);
#endif
}

}  // namespace fl::simt
