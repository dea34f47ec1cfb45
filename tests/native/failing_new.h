// Replaces operator new of the test program: counts what is alive, and, while the alloc fault point is armed, passes it
// for every allocation of every thread but those inside a NoFaults scope.
#pragma once

#include <cstdint>

namespace fastllm::test {

// Blocks from operator new that were not deleted yet.
int64_t num_live_allocations();

// Allocations of this thread count and fail only outside such scopes: the test itself must not be hit.
class NoFaults {
 public:
  NoFaults();
  ~NoFaults();
  NoFaults(const NoFaults&) = delete;
  NoFaults& operator=(const NoFaults&) = delete;
};

}  // namespace fastllm::test
