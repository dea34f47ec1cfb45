// Fault points for tests: FASTLLM_FAULT=alloc:N|kernel:N|queue:N|io:N makes the N-th pass of that point fail.
// Compiled in only with -DFASTLLM_FAULTS=ON; otherwise every call is the constant false.
#pragma once

#include <cstdint>

namespace fastllm::fault {

enum class Point : uint8_t { kAlloc, kKernel, kQueue, kIo };

#ifdef FASTLLM_FAULTS
bool should_fail(Point point);       // counts the pass; thread-safe
void arm(Point point, int64_t nth);  // nth counts from 1; 0 disarms. Used by tests through the bindings.
int64_t passes(Point point);         // passes counted since arm()
#else
constexpr bool should_fail(Point) { return false; }
#endif

}  // namespace fastllm::fault
