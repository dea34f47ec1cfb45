// The kernels alone: one core, weights and activations in the second cache, no packing of activations. The share is
// of the level's dot products that never leave the registers.
#include <benchmark/benchmark.h>

#include "cpu/kernel_table.h"
#include "cpu/linear.h"
#include "limits.h"
#include "random_weight.h"
#include "register.h"
#include "timing.h"

namespace fastllm::bench {
namespace {

constexpr int64_t kN = 256, kK = 1024;  // eight panels: int4 139 KB, int8 264 KB, bf16 512 KB

void run_kernel(benchmark::State& state, const Format& format, int64_t num_rows) {
  const auto backend = make_cpu_backend(1, limits().isa);
  const RandomWeight weight(*backend, describe(format, kN, kK), 1);
  const cpu::Matrix matrix(weight.copy(0), cpu::kernels_for(limits().isa));
  const std::vector<float> x = random_floats(num_rows * kK);
  std::vector<float> y(static_cast<std::size_t>(num_rows * kN));
  const Buffer packed(num_rows * matrix.row_bytes, "packed");
  cpu::PackRowsJob rows;
  rows.x = x.data();
  rows.x_stride = kK;
  rows.num_rows = num_rows;
  rows.k = kK;
  rows.format = matrix.layout.format;
  rows.packed = packed.data();
  matrix.entry.pack_rows(rows, 0, (num_rows + matrix.entry.row_tile - 1) / matrix.entry.row_tile);
  cpu::LinearJob job = matrix.job(0, 0, matrix.layout.num_panels);
  job.packed = packed.data();
  job.num_rows = num_rows;
  job.y = y.data();
  job.y_stride = kN;
  constexpr int kRepeat = 4;
  const double seconds = fastest(state, [&] {
    for (int i = 0; i < kRepeat; ++i) matrix.entry.run(job);
  });
  const double macs = static_cast<double>(kRepeat * num_rows * kN * kK) / seconds;
  const Limits::Macs& peak = limits().of_one;
  const double limit = format.format == WeightFormat::kBF16 ? peak.bf16 : peak.int8;
  state.counters["GMAC/s"] = macs / 1e9;
  state.counters["peak_%"] = 100 * macs / limit;
  state.counters["GB/s"] = kRepeat * static_cast<double>(weight.bytes()) / seconds / 1e9;
}

void pack_weights(benchmark::State& state, const Format& format) {
  constexpr int64_t kRows = 32;
  const auto backend = make_cpu_backend(1, limits().isa);
  const WeightDesc desc = describe(format, kRows, 4096);
  const RandomWeight weight(*backend, desc, 1);
  const std::vector<uint8_t> codes(static_cast<std::size_t>(desc.n * desc.k), 3);
  const std::vector<float> scales(static_cast<std::size_t>(desc.n * desc.groups()), 1.0f);
  const double seconds =
      fastest(state, [&] { backend->pack_codes(weight.copy(0), {codes.data(), scales.data(), nullptr, 0, kRows, 0}); });
  state.counters["Gcode/s"] = static_cast<double>(codes.size()) / seconds / 1e9;
}

}  // namespace

void register_in_cache() {
  const std::vector<Format> formats = {
      {"int4_g32", WeightFormat::kInt4, 32, ActMode::kA8},
      {"int4_g64", WeightFormat::kInt4, 64, ActMode::kA8},
      {"int4_g128", WeightFormat::kInt4, 128, ActMode::kA8},
      {"int4_g128_zeros", WeightFormat::kInt4, 128, ActMode::kA8R, true},
      {"int4_row", WeightFormat::kInt4, 0, ActMode::kA8},
      {"int8_g32", WeightFormat::kInt8, 32, ActMode::kA8},
      {"int8_g128", WeightFormat::kInt8, 128, ActMode::kA8},
      {"int8_row", WeightFormat::kInt8, 0, ActMode::kA8},
      {"int4_g64_a8r", WeightFormat::kInt4, 64, ActMode::kA8R},
      {"int4_g64_a15", WeightFormat::kInt4, 64, ActMode::kA15},
      {"int4_g64_bf16", WeightFormat::kInt4, 64, ActMode::kBF16},
      {"int4_g64_f32", WeightFormat::kInt4, 64, ActMode::kF32},
      {"bf16", WeightFormat::kBF16, 0, ActMode::kA8R},
  };
  for (const Format& format : formats) {
    for (const int64_t num_rows : {1, 2, 4, 6, 12, 96}) {
      benchmark::RegisterBenchmark(("kernel/" + format.name + "/M:" + std::to_string(num_rows)).c_str(), run_kernel,
                                   format, num_rows)
          ->MinTime(0.1);
    }
    if (is_integer(format.format) && format.act == ActMode::kA8) {
      benchmark::RegisterBenchmark(("pack_codes/" + format.name).c_str(), pack_weights, format)->MinTime(0.1);
    }
  }
}

}  // namespace fastllm::bench
