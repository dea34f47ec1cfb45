// Shape of a launch, in both halves.
#pragma once

#include <cstdint>

namespace fl {

struct Dim3 {
  uint32_t x = 1;
  uint32_t y = 1;
  uint32_t z = 1;
  [[nodiscard]] constexpr uint64_t count() const { return uint64_t{x} * y * z; }
};

struct LaunchConfig {
  const char* name;  // of the kernel, for errors
  Dim3 grid;
  uint32_t block = 0;      // threads, along x
  int64_t smem_bytes = 0;  // dynamic shared memory
};

}  // namespace fl
