// Fault points for tests: FASTLLM_FAULT=alloc:N|kernel:N|queue:N|io:N makes the N-th pass of that point fail.
// Compiled in only with -DFASTLLM_FAULTS=ON; otherwise every call is empty.
//
//   alloc   Buffer, so weights, KV pages, activations and scratch; a test program may count operator new as well
//   kernel  start of a model step, each layer, sampling, and each chunk of work in the thread pool
//   queue   submission, and each result that is handed to an output channel
//   io      each tensor that is read out of a checkpoint's mapped bytes (files are opened by Python, not here)
#pragma once

#include <cstdint>

#ifdef FASTLLM_FAULTS
#include "core/error.h"
#endif

namespace fastllm::fault {

enum class Point : uint8_t { kAlloc, kKernel, kQueue, kIo };

#ifdef FASTLLM_FAULTS
bool should_fail(Point point);  // counts the pass; thread-safe
// Passes nth .. nth + count - 1 from now fail; nth counts from 1, 0 disarms.
void arm(Point point, int64_t nth, int64_t count = 1);
int64_t passes(Point point);  // counted since arm()

inline void pass(Point point, ErrorKind kind, const char* where) {
  if (should_fail(point)) fail(kind, where, ": injected fault");
}
#define FASTLLM_FAULT_POINT(point, kind, where) \
  ::fastllm::fault::pass(::fastllm::fault::Point::point, ::fastllm::ErrorKind::kind, where)
#else
constexpr bool should_fail(Point) { return false; }
#define FASTLLM_FAULT_POINT(point, kind, where) static_cast<void>(0)
#endif

}  // namespace fastllm::fault
