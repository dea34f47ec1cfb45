#include "cpu/probe.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "core/buffer.h"
#include "cpu/kernel_table.h"

namespace fastllm {
namespace {

constexpr int kPasses = 5;
constexpr int64_t kReadBytes = int64_t{384} << 20;  // larger than any last-level cache it will be read through
constexpr int64_t kReadChunk = 256 << 10;

template <class Body>
double seconds(Body&& body) {
  const auto start = std::chrono::steady_clock::now();
  body();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

double measure_read_bandwidth(ThreadPool& pool) {
  const Buffer buffer(kReadBytes, "bandwidth probe");
  pool.parallel_for(kReadBytes / kReadChunk, 1, [&](int64_t chunk, int64_t, int) {
    std::memset(buffer.data() + chunk * kReadChunk, 1, static_cast<std::size_t>(kReadChunk));  // pages of their own
  });
  return measure_read_bandwidth(pool, {buffer.data(), static_cast<std::size_t>(kReadBytes)});
}

double measure_read_bandwidth(ThreadPool& pool, std::span<const std::byte> memory) {
  const int64_t num_chunks = std::min(std::ssize(memory), kReadBytes) / kReadChunk;
  if (num_chunks == 0) return 0.0;
  const cpu::ProbeKernels& probe = *cpu::kernels_for(detect_isa()).probe;
  double best = 0.0;
  for (int pass = 0; pass < kPasses; ++pass) {
    const double s = seconds([&] {
      pool.parallel_for(num_chunks, 1, [&](int64_t chunk, int64_t, int) {
        float sink = 0.0f;
        probe.read(memory.data() + chunk * kReadChunk, kReadChunk, &sink);
      });
    });
    best = std::max(best, static_cast<double>(num_chunks * kReadChunk) / s);
  }
  return best;
}

double measure_peak_ops(ThreadPool& pool, CpuIsa isa, DType dtype) {
  constexpr int64_t kRounds = 1 << 14;  // a pass is well below a time slice: the best one was not interrupted
  constexpr int64_t kChunksPerThread = 8;
  const cpu::ProbeKernels& probe = *cpu::kernels_for(isa).probe;
  auto loop = probe.fma_loop;
  if (dtype == DType::kBF16 && probe.bf16_dot_loop != nullptr) loop = probe.bf16_dot_loop;
  if (dtype == DType::kU8 && probe.int8_dot_loop != nullptr) loop = probe.int8_dot_loop;
  const double per_chunk = loop(kRounds);  // also wakes the wide units
  const int64_t num_chunks = kChunksPerThread * pool.size();
  double best = 0.0;
  for (int pass = 0; pass < 8 * kPasses; ++pass) {
    const double s = seconds([&] { pool.parallel_for(num_chunks, 1, [&](int64_t, int64_t, int) { loop(kRounds); }); });
    best = std::max(best, per_chunk * static_cast<double>(num_chunks) / s);
  }
  return best;
}

}  // namespace fastllm
