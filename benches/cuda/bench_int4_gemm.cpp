// y = x W^T with W of 28672 x 4096 (gate and up of an 8B model): int4 with groups of 128, and bf16 beside it. Calls
// rotate over several weights, so that none is in a cache.
#include <algorithm>
#include <string>

#include "bench.h"

namespace fastllm::bench {
namespace {

WeightDesc desc_of(WeightFormat format, int64_t n, int64_t k) {
  WeightDesc desc;
  desc.format = format;
  desc.n = n;
  desc.k = k;
  desc.act = ActMode::kBF16;
  desc.group = format == WeightFormat::kInt4 ? 128 : 0;
  return desc;
}

void reserve(Backend& backend, int64_t rows, const WeightDesc& desc) {
  OpLimits limits;
  limits.max_tokens = rows;
  limits.max_features = std::max(desc.n, desc.k);
  backend.reserve(limits);
}

std::vector<float> small(Backend& backend, WeightFormat format, int64_t rows) {
  const WeightDesc desc = desc_of(format, 256, 512);
  reserve(backend, rows, desc);
  Arrays arrays(backend);
  const PackedWeight weight = arrays.random_weight(desc, 1);
  const Mat x = arrays.random_mat(rows, desc.k, 2);
  const Mat y = arrays.mat(rows, desc.n);
  backend.linear({x, &weight, nullptr, y});
  return download(backend, y);
}

void product(Bench& bench, const std::vector<PackedWeight>& weights, int64_t rows, const char* target) {
  Backend& backend = bench.backend();
  const WeightDesc& desc = weights[0].desc;
  reserve(backend, rows, desc);
  Arrays arrays(backend);
  const Mat x = arrays.random_mat(rows, desc.k, 2);
  const Mat y = arrays.mat(rows, desc.n);
  const Timing time = bench.time(static_cast<int>(weights.size()), [&](int i) {
    backend.linear({x, &weights[static_cast<std::size_t>(i)], nullptr, y});
  });
  const double m = static_cast<double>(rows);
  const double n = static_cast<double>(desc.n);
  const double k = static_cast<double>(desc.k);
  // Below some hundred rows the weights' bytes are the limit, above it the arithmetic.
  const double bytes = static_cast<double>(backend.packed_bytes(desc)) + 4.0 * m * (n + k);
  bench.report({std::string(name_of(desc.format)) + " " + std::to_string(desc.n) + " x " + std::to_string(desc.k) +
                    ", M = " + std::to_string(rows),
                time, rows <= 256 ? bytes : 0.0, 2.0 * m * n * k, target, false});
}

void run(Bench& bench) {
  struct Case {
    int64_t rows;
    const char* int4_target;
  };
  for (const WeightFormat format : {WeightFormat::kInt4, WeightFormat::kBF16}) {
    const bool is_int4 = format == WeightFormat::kInt4;
    bench.check(name_of(format), 4e-3, [&](Backend& b) { return small(b, format, 33); });
    Arrays arrays(bench.backend());
    std::vector<PackedWeight> weights;
    const auto [n, k] =
        bench.is_smoke() ? std::pair<int64_t, int64_t>{256, 256} : std::pair<int64_t, int64_t>{28672, 4096};
    for (uint64_t i = 0; i < 4; ++i) weights.push_back(arrays.random_weight(desc_of(format, n, k), i));
    for (const Case& c : {Case{1, "80; 90 % of copy"}, Case{16, "75; 88 % of copy"}, Case{64, "50; 70 % of copy"},
                          Case{1024, "450; 590 TFLOP/s"}, Case{4096, "450; 590 TFLOP/s"}}) {
      if (bench.is_smoke() && c.rows > 64) continue;
      product(bench, weights, c.rows, is_int4 ? c.int4_target : "");
    }
  }
}

}  // namespace
}  // namespace fastllm::bench

int main(int argc, char** argv) {
  return fastllm::bench::bench_main("bench_int4_gemm", argc, argv, fastllm::bench::run);
}
