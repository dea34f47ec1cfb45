// What this machine can do at most, measured once at the start of the run: the denominators of every share.
#pragma once

#include "core/cpu_info.h"

namespace fastllm::bench {

struct Limits {
  CpuIsa isa = CpuIsa::kScalar;
  int num_threads = 1;
  double read_bytes = 0.0;  // per second, all threads
  // Multiply-adds per second of one thread and of all; int8 and bf16 are those of float where a level lacks them.
  struct Macs {
    double f32 = 0.0, bf16 = 0.0, int8 = 0.0;
  };
  Macs of_one, of_all;
};

// Measures on the first call and prints what it finds. The level is that of FASTLLM_CPU_ISA, or the machine's best.
const Limits& limits();

}  // namespace fastllm::bench
