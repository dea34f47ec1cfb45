#include "limits.h"

#include <cstdio>
#include <cstdlib>

#include "cpu/probe.h"

namespace fastllm::bench {
namespace {

Limits::Macs measure_macs(ThreadPool& pool, CpuIsa isa) {
  return {measure_peak_ops(pool, isa, DType::kF32) / 2, measure_peak_ops(pool, isa, DType::kBF16) / 2,
          measure_peak_ops(pool, isa, DType::kU8) / 2};
}

Limits measure() {
  Limits out;
  out.isa = choose_isa(std::getenv("FASTLLM_CPU_ISA"));
  out.num_threads = default_num_threads();
  std::printf("level %s, %d threads\n", name_of(out.isa), out.num_threads);
  for (int threads = 1; threads <= out.num_threads; ++threads) {
    if (threads > 4 && threads < out.num_threads && (threads & (threads - 1)) != 0) continue;  // 1 2 3 4 8 16 ...
    ThreadPool pool(threads);
    out.read_bytes = measure_read_bandwidth(pool);
    out.of_all = measure_macs(pool, out.isa);
    if (threads == 1) out.of_one = out.of_all;
    std::printf("limits, %2d thread%s read %6.1f GB/s; GMAC/s: float32 %6.1f, bf16 %6.1f, int8 %6.1f\n", threads,
                threads == 1 ? ": " : "s:", out.read_bytes / 1e9, out.of_all.f32 / 1e9, out.of_all.bf16 / 1e9,
                out.of_all.int8 / 1e9);
  }
  std::fflush(stdout);
  return out;
}

}  // namespace

const Limits& limits() {
  static const Limits measured = measure();
  return measured;
}

}  // namespace fastllm::bench
