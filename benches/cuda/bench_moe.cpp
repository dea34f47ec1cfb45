// The mixture of Qwen3-30B-A3B: 128 experts of 768 on 2048, 8 of them for each token; route, sort, products, combine,
// without the router's own product. Calls rotate over inputs that choose other experts.
#include <algorithm>
#include <set>
#include <string>

#include "bench.h"

namespace fastllm::bench {
namespace {

struct Shape {
  int64_t hidden, experts, chosen, ffn;
};
constexpr Shape kQwen3{2048, 128, 8, 768};
constexpr Shape kSmall{256, 8, 2, 128};

WeightDesc desc_of(WeightFormat format, int64_t experts, int64_t n, int64_t k) {
  WeightDesc desc;
  desc.format = format;
  desc.num_experts = experts;
  desc.n = n;
  desc.k = k;
  desc.act = ActMode::kBF16;
  desc.group = format == WeightFormat::kInt4 ? 128 : 0;
  return desc;
}

struct Layer {
  Layer(Arrays& arrays, WeightFormat format, const Shape& s)
      : shape(s),
        gate_up(arrays.random_weight(desc_of(format, s.experts, 2 * s.ffn, s.hidden), 1)),
        down(arrays.random_weight(desc_of(format, s.experts, s.hidden, s.ffn), 2)) {}
  Shape shape;
  PackedWeight gate_up, down;
};

// One input and the memory for what follows from it.
struct Input {
  Input(Arrays& arrays, const Shape& s, int64_t tokens, uint64_t seed)
      : x(arrays.random_mat(tokens, s.hidden, seed)),
        logits(arrays.random_mat(tokens, s.experts, seed + 1000)),
        y(arrays.mat(tokens, s.hidden)),
        experts(arrays.make<int32_t>(tokens * s.chosen)),
        weights(arrays.make<float>(tokens * s.chosen)) {}
  Mat x, logits, y;
  int32_t* experts;
  float* weights;
};

void reserve(Backend& backend, const Shape& s, int64_t tokens) {
  OpLimits limits;
  limits.max_tokens = tokens;
  limits.max_features = std::max({s.hidden, 2 * s.ffn, s.experts});
  limits.num_experts = s.experts;
  limits.experts_per_token = s.chosen;
  limits.moe_features = s.ffn;
  backend.reserve(limits);
}

void forward(Backend& backend, const Layer& layer, const Input& in) {
  MoeRouteArgs route;
  route.logits = in.logits;
  route.top_k = layer.shape.chosen;
  route.renormalize = true;
  route.experts = in.experts;
  route.weights = in.weights;
  backend.moe_route(route);
  MoeFfnArgs ffn;
  ffn.x = in.x;
  ffn.top_k = layer.shape.chosen;
  ffn.experts = in.experts;
  ffn.weights = in.weights;
  ffn.gate_up = &layer.gate_up;
  ffn.down = &layer.down;
  ffn.y = in.y;
  backend.moe_ffn(ffn);
}

std::vector<float> small(Backend& backend, WeightFormat format) {
  reserve(backend, kSmall, 9);
  Arrays arrays(backend);
  const Layer layer(arrays, format, kSmall);
  const Input in(arrays, kSmall, 9, 3);
  forward(backend, layer, in);
  return download(backend, in.y);
}

void layer_of(Bench& bench, const Layer& layer, int64_t tokens, const char* target) {
  Backend& backend = bench.backend();
  const Shape& s = layer.shape;
  reserve(backend, s, tokens);
  Arrays arrays(backend);
  std::vector<Input> inputs;
  const uint64_t num_inputs = tokens > 256 || bench.is_smoke() ? 1 : 16;
  for (uint64_t i = 0; i < num_inputs; ++i) inputs.emplace_back(arrays, s, tokens, i);
  const Timing time = bench.time(static_cast<int>(inputs.size()),
                                 [&](int i) { forward(backend, layer, inputs[static_cast<std::size_t>(i)]); });
  double touched = 0.0;
  for (const Input& in : inputs) {
    std::vector<int32_t> experts(static_cast<std::size_t>(tokens * s.chosen));
    backend.download(experts.data(), in.experts, std::ssize(experts) * size_of(DType::kI32));
    touched += static_cast<double>(std::set<int32_t>(experts.begin(), experts.end()).size());
  }
  touched /= static_cast<double>(inputs.size());
  const double expert_bytes =
      static_cast<double>(backend.packed_bytes(layer.gate_up.desc) + backend.packed_bytes(layer.down.desc)) /
      static_cast<double>(s.experts);
  const double pairs = static_cast<double>(tokens * s.chosen);
  bench.report({std::string(name_of(layer.gate_up.desc.format)) + " experts, T = " + std::to_string(tokens), time,
                tokens <= 256 ? touched * expert_bytes : 0.0, 2.0 * pairs * 3.0 * static_cast<double>(s.hidden * s.ffn),
                target, false});
}

void run(Bench& bench) {
  for (const WeightFormat format : {WeightFormat::kBF16, WeightFormat::kInt4}) {
    const bool is_int4 = format == WeightFormat::kInt4;
    bench.check(name_of(format), 6e-3, [&](Backend& b) { return small(b, format); });
    Arrays arrays(bench.backend());
    const Layer layer(arrays, format, bench.is_smoke() ? kSmall : kQwen3);
    layer_of(bench, layer, 1, is_int4 ? "14; 9 us" : "32; 23 us");
    layer_of(bench, layer, bench.is_smoke() ? 8 : 64, is_int4 ? "55; 75 % of copy" : "75; 88 % of copy");
    if (!bench.is_smoke()) layer_of(bench, layer, 4096, "50; 65 % of the tensor cores");
  }
}

}  // namespace
}  // namespace fastllm::bench

int main(int argc, char** argv) { return fastllm::bench::bench_main("bench_moe", argc, argv, fastllm::bench::run); }
