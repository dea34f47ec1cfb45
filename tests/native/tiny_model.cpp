#include "tiny_model.h"

#include <string>

namespace fastllm::test {

ModelSpec tiny_spec() {
  ModelSpec spec;
  spec.architecture = "Tiny";
  spec.hidden_size = 8;
  spec.vocab_size = 20;
  spec.max_position = 64;
  spec.ropes.push_back({.inv_freq = {1.0f, 0.1f}, .scale = 1.0f});
  LayerSpec layer;
  layer.attention.num_heads = 2;
  layer.attention.num_kv_heads = 1;
  layer.attention.head_dim = 4;
  layer.attention.scale = 0.5f;
  layer.attention_norm = NormSpec{};
  layer.ffn_norm = NormSpec{};
  layer.ffn = DenseFfnSpec{.ffn_dim = 8, .activation = {}};
  spec.layers.push_back(layer);
  layer.ffn.reset();
  layer.moe = MoeSpec{};
  layer.moe->num_experts = 3;
  layer.moe->experts_per_token = 2;
  layer.moe->ffn_dim = 4;
  spec.layers.push_back(layer);
  return spec;
}

EngineConfig tiny_config(const Backend& backend) {
  EngineConfig config;
  config.num_pages = 5;
  config.page_size = backend.page_size();
  config.vocab_size = tiny_spec().vocab_size;
  config.max_model_len = 64;
  config.max_num_seqs = 4;
  config.max_num_batched_tokens = 12;
  config.max_logit_rows = 6;
  config.max_queue = 32;
  std::vector<std::string> names;
  for (int64_t i = 0; i < config.vocab_size; ++i) names.emplace_back(1, static_cast<char>('a' + i));
  config.byte_table =
      std::make_shared<ByteTable>(names, std::vector<uint8_t>(static_cast<std::size_t>(config.vocab_size), 0));
  return config;
}

std::shared_ptr<Model> make_tiny_model(std::unique_ptr<Backend> backend) {
  auto model = std::make_shared<Model>(tiny_spec(), std::move(backend), WeightPlan{WeightFormat::kF32, {}});
  model->allocate_weights();
  model->weights->fill_random(3);
  return model;
}

std::unique_ptr<Executor> make_tiny_executor(std::unique_ptr<Backend> backend, EngineConfig& config) {
  auto model = make_tiny_model(std::move(backend));
  config = tiny_config(*model->backend);
  const StepLimits limits{config.max_num_batched_tokens, config.max_num_seqs, config.max_logit_rows, 0};
  return std::make_unique<ModelExecutor>(std::move(model), limits, config.num_pages, DType::kF32);
}

}  // namespace fastllm::test
