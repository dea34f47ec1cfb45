// Operations at the shapes of published models, on all threads, weights from memory: each call reads another copy, so
// that the caches never help.
#include <benchmark/benchmark.h>

#include <memory>

#include "core/checked.h"
#include "cpu/cpu_backend.h"
#include "limits.h"
#include "random_weight.h"
#include "register.h"
#include "timing.h"

namespace fastllm::bench {
namespace {

constexpr int64_t kRows[] = {1, 2, 4, 6, 8, 16, 32, 64, 512};
constexpr int64_t kWalkBytes = int64_t{256} << 20;  // copies of a weight together: several times any cache

struct Shape {
  std::string name;
  int64_t n, k;
};

// Bytes, multiply-adds and shares of both limits.
void report(benchmark::State& state, double seconds, double bytes, double macs, bool is_bf16) {
  const Limits& limit = limits();
  state.counters["GB/s"] = bytes / seconds / 1e9;
  state.counters["read_%"] = 100 * bytes / seconds / limit.read_bytes;
  state.counters["GMAC/s"] = macs / seconds / 1e9;
  state.counters["peak_%"] = 100 * macs / seconds / (is_bf16 ? limit.of_all.bf16 : limit.of_all.int8);
}

// A backend with weights. Google Benchmark calls a benchmark several times, and one shape has many: the last one made
// is kept.
struct Case {
  std::unique_ptr<Backend> backend;
  std::vector<RandomWeight> weights;
};
template <class Make>
Case& cached(const std::string& key, Make&& make) {
  static std::string last_key;
  static Case last;
  if (key != last_key) {
    last = {};
    last = make();
    last_key = key;
  }
  return last;
}

void run_linear(benchmark::State& state, const Format& format, const Shape& shape, int64_t num_rows) {
  Case& it = cached(shape.name + format.name, [&] {
    Case made;
    made.backend = make_cpu_backend(limits().num_threads, limits().isa);
    const WeightDesc desc = describe(format, shape.n, shape.k);
    const int64_t copies = std::max<int64_t>(1, kWalkBytes / made.backend->packed_bytes(desc));
    made.weights.emplace_back(*made.backend, desc, copies);
    return made;
  });
  const RandomWeight& weight = it.weights[0];
  OpLimits need;
  need.max_tokens = num_rows;
  need.max_features = std::max(shape.n, shape.k);
  it.backend->reserve(need);
  std::vector<float> x = random_floats(num_rows * shape.k);
  std::vector<float> y(static_cast<std::size_t>(num_rows * shape.n));
  int64_t next = 0;
  const double seconds = fastest(state, [&] {
    it.backend->linear({{x.data(), DType::kF32, num_rows, shape.k, shape.k},
                        &weight.copy(next++ % weight.size()),
                        nullptr,
                        {y.data(), DType::kF32, num_rows, shape.n, shape.n}});
  });
  report(state, seconds, static_cast<double>(weight.bytes()), static_cast<double>(num_rows * shape.n * shape.k),
         format.format == WeightFormat::kBF16);
}

// 32 experts of 512, 4 for each token; tokens choose evenly, and each call begins with others.
void run_moe(benchmark::State& state, const Format& format, int64_t num_tokens) {
  constexpr int64_t kHidden = 1024, kFfn = 512, kExperts = 32, kTopK = 4;
  Case& it = cached("moe" + format.name, [&] {
    Case made;
    made.backend = make_cpu_backend(limits().num_threads, limits().isa);
    const WeightDesc gate_up = describe(format, 2 * kFfn, kHidden, kExperts);
    const int64_t copies = std::max<int64_t>(1, kWalkBytes / (2 * made.backend->packed_bytes(gate_up)));
    made.weights.emplace_back(*made.backend, gate_up, copies);
    made.weights.emplace_back(*made.backend, describe(format, kHidden, kFfn, kExperts), copies);
    return made;
  });
  const RandomWeight& gate_up = it.weights[0];
  const RandomWeight& down = it.weights[1];
  OpLimits need;
  need.max_tokens = num_tokens;
  need.max_features = kHidden;
  need.num_experts = kExperts;
  need.experts_per_token = kTopK;
  need.moe_features = kFfn;
  it.backend->reserve(need);
  std::vector<float> x = random_floats(num_tokens * kHidden);
  std::vector<float> y(x.size());
  std::vector<int32_t> experts(static_cast<std::size_t>(num_tokens * kTopK));
  const std::vector<float> weights(experts.size(), 0.25f);
  int64_t next = 0;
  const double seconds = fastest(state, [&] {
    const int64_t i = next % gate_up.size();
    for (std::size_t e = 0; e < experts.size(); ++e) {
      experts[e] = static_cast<int32_t>((static_cast<int64_t>(e) * 5 + next * kTopK) % kExperts);
    }
    ++next;
    MoeFfnArgs args;
    args.x = {x.data(), DType::kF32, num_tokens, kHidden, kHidden};
    args.top_k = kTopK;
    args.experts = experts.data();
    args.weights = weights.data();
    args.gate_up = &gate_up.copy(i);
    args.down = &down.copy(i);
    args.y = {y.data(), DType::kF32, num_tokens, kHidden, kHidden};
    it.backend->moe_ffn(args);
  });
  const auto used = static_cast<double>(std::min(kExperts, num_tokens * kTopK)) / kExperts;
  report(state, seconds, used * static_cast<double>(gate_up.bytes() + down.bytes()),
         static_cast<double>(num_tokens * kTopK * 3 * kHidden * kFfn), format.format == WeightFormat::kBF16);
}

}  // namespace

void register_linear() {
  const std::vector<Shape> shapes = {
      {"Qwen3-0.6B/qkv", 4096, 1024},    {"Qwen3-0.6B/o", 1024, 2048},     {"Qwen3-0.6B/gate_up", 6144, 1024},
      {"Qwen3-0.6B/down", 1024, 3072},   {"Llama-3.2-1B/qkv", 3072, 2048}, {"Llama-3.2-1B/gate_up", 16384, 2048},
      {"Llama-3.2-1B/down", 2048, 8192}, {"Llama-3-8B/qkv", 6144, 4096},   {"Llama-3-8B/gate_up", 28672, 4096},
      {"Llama-3-8B/down", 4096, 14336},
  };
  const std::vector<Format> formats = {
      {"int4_g64", WeightFormat::kInt4, 64, ActMode::kA8R},
      {"int4_g128_zeros", WeightFormat::kInt4, 128, ActMode::kA8R, true},  // what quantization="int4" makes
      {"int8_g128", WeightFormat::kInt8, 128, ActMode::kA8R},
      {"bf16", WeightFormat::kBF16, 0, ActMode::kA8R},
  };
  const auto add = [](const std::string& name, auto run) {
    benchmark::RegisterBenchmark(name.c_str(), run)->UseRealTime()->MinTime(0.2)->Unit(benchmark::kMicrosecond);
  };
  for (const Format& format : formats) {
    for (const Shape& shape : shapes) {
      for (const int64_t m : kRows) {
        add("linear/" + shape.name + "/" + format.name + "/M:" + std::to_string(m),
            [=](benchmark::State& state) { run_linear(state, format, shape, m); });
      }
    }
    for (const int64_t m : kRows) {
      add("moe_ffn/32x512_top4/" + format.name + "/M:" + std::to_string(m),
          [=](benchmark::State& state) { run_moe(state, format, m); });
    }
  }
}

}  // namespace fastllm::bench
