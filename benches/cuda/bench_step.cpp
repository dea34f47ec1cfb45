// One decode step of the shape of Llama 3 8B for one sequence with 1024 tokens: the forward pass as one graph, and with
// greedy sampling, the token back and on to the next step's place.
#include <string>

#include "bench.h"
#include "core/checked.h"
#include "kv/kv_storage.h"
#include "model/decoder.h"

namespace fastllm::bench {
namespace {

ModelSpec llama(bool is_smoke) {
  ModelSpec spec;
  spec.architecture = "Llama 3 8B";
  spec.hidden_size = is_smoke ? 128 : 4096;
  spec.vocab_size = is_smoke ? 256 : 128256;
  spec.max_position = 8192;
  RopeSpec rope;
  for (int i = 0; i < 64; ++i) rope.inv_freq.push_back(1.0f / static_cast<float>(i + 1));
  spec.ropes.push_back(rope);
  LayerSpec layer;
  layer.attention.num_heads = is_smoke ? 2 : 32;
  layer.attention.num_kv_heads = is_smoke ? 1 : 8;
  layer.attention.head_dim = 128;
  layer.attention.scale = 0.088388347648f;
  layer.attention_norm = NormSpec{};
  layer.ffn_norm = NormSpec{};
  layer.ffn = DenseFfnSpec{.ffn_dim = is_smoke ? 256 : 14336, .activation = {}};
  spec.layers.assign(is_smoke ? 2 : 32, layer);
  check(spec);
  return spec;
}

WeightPlan plan_of(const ModelSpec& spec, bool is_int4) {
  WeightPlan plan;
  if (!is_int4) return plan;
  for (const MatrixShape& shape : matrix_shapes(spec)) {
    if (shape.is_fixed || shape.name == "embed" || shape.name == "lm_head") continue;  // as published checkpoints do
    plan.named[shape.name] = {WeightFormat::kInt4, 128, DType::kF16, false, ActMode::kBF16};
  }
  return plan;
}

void step_of(Bench& bench, bool is_int4, const char* target) {
  Backend& backend = bench.backend();
  const ModelSpec spec = llama(bench.is_smoke());
  ModelWeights weights(spec, plan_of(spec, is_int4), backend);
  double bytes = 0.0;
  for (const auto& [name, slot] : weights.matrices()) {
    fill_weight(backend, slot.weight, 1);
    if (name != "embed") bytes += static_cast<double>(slot.bytes);
  }
  for (const auto& [name, slot] : weights.vectors()) {
    const std::vector<float> ones(static_cast<std::size_t>(slot.size), 1.0f);
    backend.upload(slot.data, ones.data(), slot.size * size_of(DType::kF32));
  }
  const int64_t context = bench.is_smoke() ? 40 : 1024;
  const int64_t pages = ceil_div(context, backend.page_size());
  const std::vector<KvSpec> specs(
      spec.layers.size(), {spec.layers[0].attention.num_kv_heads, spec.layers[0].attention.head_dim, DType::kBF16});
  const KvStorage kv(specs, pages, backend);
  for (const KvLayer& layer : kv.layers()) {  // the context: zeros
    const std::vector<std::byte> zeros(static_cast<std::size_t>(layer.page_bytes * layer.num_pages));
    backend.upload(layer.data, zeros.data(), std::ssize(zeros));
  }
  bytes += static_cast<double>(KvStorage::page_bytes(specs, backend) * pages);
  Decoder decoder(spec, weights, backend,
                  {.max_tokens = 1, .max_seqs = 1, .max_logit_rows = 1, .max_pages_per_seq = pages});

  Arrays arrays(backend);
  std::vector<int32_t> table;
  for (int64_t p = 0; p < pages; ++p) table.push_back(narrow<int32_t>(p));
  StepView step;
  step.num_tokens = step.num_seqs = 1;
  step.max_pages = pages;
  step.max_context_len = context;
  int32_t* token = arrays.put(std::vector<int32_t>{17});
  step.token_ids = token;
  step.positions = arrays.put(std::vector<int32_t>{narrow<int32_t>(context - 1)});
  step.query_start = arrays.put(std::vector<int32_t>{0, 1});
  step.context_len = arrays.put(std::vector<int32_t>{narrow<int32_t>(context)});
  step.block_table = arrays.put(table);
  step.slots = arrays.put(std::vector<int64_t>{context - 1});
  const int32_t* rows = arrays.put(std::vector<int32_t>{0});
  const auto forward = [&](int) { decoder.forward(step, kv.layers(), {rows, 1}); };

  const char* format = is_int4 ? "int4, " : "bf16, ";
  const Timing graph = bench.time(1, forward);
  bench.report({format + std::string("forward pass alone"), graph, bytes, 0.0, target, true});

  SampleRow sampling;
  sampling.temperature = 0.0f;
  SampleResult result;
  bool is_finite = true;
  const Timing whole = bench.time_host([&] {
    bench.replay();
    backend.sample({decoder.logits(), 1, spec.vocab_size, spec.vocab_size, &sampling, &result});
    is_finite = is_finite && result.is_finite;
    backend.upload(token, &result.token, sizeof(result.token));
  });
  if (!is_finite) fail(ErrorKind::kInternal, "bench_step: the logits are not finite");
  bench.report({format + std::string("with sampling"), whole, bytes, 0.0, target, true});
}

void run(Bench& bench) {
  step_of(bench, false, "200; 240 tok/s");
  step_of(bench, true, "450; 600 tok/s");
}

}  // namespace
}  // namespace fastllm::bench

int main(int argc, char** argv) { return fastllm::bench::bench_main("bench_step", argc, argv, fastllm::bench::run); }
