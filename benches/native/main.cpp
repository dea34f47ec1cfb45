// fastllm_bench: what this machine can do at most, then what each kernel does, as a share of it.
#include <benchmark/benchmark.h>

#include "limits.h"
#include "register.h"

int main(int argc, char** argv) {
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 2;
  fastllm::bench::limits();
  fastllm::bench::register_in_cache();
  fastllm::bench::register_linear();
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
