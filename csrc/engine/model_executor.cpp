#include "engine/model_executor.h"

#include <algorithm>
#include <bit>
#include <utility>

#include "core/checked.h"
#include "core/error.h"
#include "core/fault.h"
#include "engine/request.h"

namespace fastllm {
namespace {

// Decode steps that are recorded before the first request, and what that may take; the rest when they are first met.
constexpr std::size_t kRecordedAtStart = 16;
constexpr double kRecordSeconds = 3.0;

}  // namespace

Model::Model(ModelSpec model_spec, std::unique_ptr<Backend> model_backend, WeightPlan weight_plan)
    : spec(std::move(model_spec)), backend(std::move(model_backend)), plan(std::move(weight_plan)) {
  check(spec);
}

std::vector<KvSpec> Model::kv_specs(DType kv_dtype) const {
  std::vector<KvSpec> specs;
  for (const LayerSpec& layer : spec.layers) {
    specs.push_back({layer.attention.num_kv_heads, layer.attention.head_dim, kv_dtype});
  }
  return specs;
}

int64_t Model::weight_bytes() const { return ModelWeights::bytes(spec, plan, *backend); }

int64_t Model::step_bytes(const StepLimits& limits) const {
  return Decoder::activation_bytes(spec, *backend, limits) + backend->scratch_bytes(op_limits(spec, limits)) +
         DeviceStep::bytes(*backend, limits);
}

int64_t Model::kv_page_bytes(DType kv_dtype) const { return KvStorage::page_bytes(kv_specs(kv_dtype), *backend); }

void Model::allocate_weights() { weights = std::make_unique<ModelWeights>(spec, plan, *backend); }

const ModelWeights& Model::loaded_weights() const {
  FASTLLM_CHECK(weights != nullptr, "weights were not allocated");
  return *weights;
}

ModelClaim::ModelClaim(std::shared_ptr<Model> model) : model_(std::move(model)) {
  if (!model_->is_in_use.exchange(true)) return;
  fail(ErrorKind::kInvalidRequest, "this model already runs in an engine; close that one, or load the model again");
}

ModelClaim::~ModelClaim() { model_->is_in_use = false; }

ModelExecutor::ModelExecutor(std::shared_ptr<Model> model, const StepLimits& limits, int64_t num_pages, DType kv_dtype)
    : model_(std::move(model)),
      kv_(model_->kv_specs(kv_dtype), num_pages, *model_->backend),
      decoder_(model_->spec, model_->loaded_weights(), *model_->backend, limits),
      device_step_(*model_->backend, limits),
      limits_(limits),
      read_bytes_(model_->spec, model_->loaded_weights(), model_->kv_specs(kv_dtype), *model_->backend) {
  record_likely_steps();
  if (model_->backend->shares_host_memory()) return;
  hidden_.resize(narrow<std::size_t>(checked_mul(limits.max_tokens, model_->spec.hidden_size, "hidden states")));
}

void ModelExecutor::execute(Step& step) {
  FASTLLM_FAULT_POINT(kKernel, kDevice, "model step");
  Backend& backend = *model_->backend;
  if (!step.copy_from.empty()) {
    for (const KvLayer& layer : kv_.layers()) backend.copy_pages({layer, step.copy_from, step.copy_to});
  }
  step.read_bytes = read_bytes_.of_step(step.view, step.num_rows() > 0);
  const double forward_begin_s = monotonic_s();
  float* logits = run_model(step);
  if (step.num_rows() == 0) return;
  FASTLLM_FAULT_POINT(kKernel, kDevice, "sample");
  if (step.before_sample) backend.wait();
  // Elsewhere the forward pass may still be running.
  if (step.before_sample || backend.shares_host_memory()) step.sample_begin_s = monotonic_s();
  if (step.before_sample) step.before_sample(step.sample_begin_s - forward_begin_s);
  const int64_t vocab = model_->spec.vocab_size;
  backend.sample({.logits = logits,
                  .num_rows = step.num_rows(),
                  .vocab_size = vocab,
                  .stride = vocab,
                  .rows = step.rows.data(),
                  .results = step.results.data()});
}

ExpertTotals ModelExecutor::expert_totals() {
  ExpertTotals totals{decoder_.expert_use(), 0};
  totals.read_bytes = read_bytes_.of_experts(totals.use);
  return totals;
}

// 1, 2, 4, 8, then multiples of 8 sequences; powers of two of pages, from those of 256 tokens on: that many are one
// unit of attention, so shorter contexts would gain nothing.
ModelExecutor::DecodeShape ModelExecutor::shape_for(int64_t num_seqs, int64_t max_pages) const {
  const auto power_of_two = [](int64_t x) { return static_cast<int64_t>(std::bit_ceil(static_cast<uint64_t>(x))); };
  const int64_t seqs = num_seqs <= 8 ? power_of_two(num_seqs) : round_up(num_seqs, 8);
  const int64_t pages = power_of_two(std::max(max_pages, ceil_div(256, model_->backend->page_size())));
  return {std::min(seqs, limits_.max_seqs), std::min(pages, limits_.max_pages_per_seq)};
}

// Few sequences and short contexts first: every batch and every sequence comes through those.
std::vector<ModelExecutor::DecodeShape> ModelExecutor::likely_shapes() const {
  std::vector<int64_t> seqs;
  std::vector<int64_t> pages;
  for (int64_t n = 0; n < limits_.max_seqs; n = seqs.back()) seqs.push_back(shape_for(n + 1, 1).num_seqs);
  for (int64_t n = 0; n < limits_.max_pages_per_seq; n = pages.back()) pages.push_back(shape_for(1, n + 1).max_pages);
  std::vector<DecodeShape> shapes;
  for (std::size_t sum = 0; sum < seqs.size() + pages.size(); ++sum) {
    for (std::size_t p = 0; p <= sum && p < pages.size(); ++p) {
      if (sum - p < seqs.size()) shapes.push_back({seqs[sum - p], pages[p]});
    }
  }
  return shapes;
}

void ModelExecutor::record_likely_steps() {
  Backend& backend = *model_->backend;
  if (!backend.has_graphs()) return;
  std::vector<DecodeShape> shapes = likely_shapes();
  shapes.resize(std::min(shapes.size(), kRecordedAtStart));
  const double begin = monotonic_s();
  for (const DecodeShape& shape : shapes) {
    if (monotonic_s() - begin > kRecordSeconds) return;
    const DeviceStep::Arrays arrays = device_step_.upload_decode({}, shape.num_seqs, shape.max_pages);
    backend.record(shape.key(), [&] { decoder_.forward(arrays.view, kv_.layers(), arrays.logit_rows); });
  }
}

// Logits of the step's rows.
float* ModelExecutor::run_model(const Step& step) {
  Backend& backend = *model_->backend;
  const StepView& view = step.view;
  const DeviceStep::Arrays host{view, step.logit_rows, step.pooled_rows};
  const bool is_decode =
      view.num_tokens == view.num_seqs && step.num_rows() == view.num_seqs && step.pooled_rows.empty();
  if (!backend.has_graphs() || !is_decode) {
    const DeviceStep::Arrays arrays = device_step_.upload(host);
    float* logits = decoder_.forward(arrays.view, kv_.layers(), arrays.logit_rows);
    pool(step, arrays.pooled_rows);
    return logits;
  }
  const DecodeShape shape = shape_for(view.num_seqs, view.max_pages);
  const DeviceStep::Arrays arrays = device_step_.upload_decode(host, shape.num_seqs, shape.max_pages);
  backend.run(shape.key(), [&] { decoder_.forward(arrays.view, kv_.layers(), arrays.logit_rows); });
  return decoder_.logits();
}

void ModelExecutor::pool(const Step& step, std::span<const int32_t> token_rows) {
  if (token_rows.empty()) return;
  const Mat hidden = decoder_.hidden_states(token_rows);
  const int64_t width = hidden.cols;
  const float* rows = hidden.row<float>(0);
  if (!model_->backend->shares_host_memory()) {
    model_->backend->download(hidden_.data(), rows, hidden.rows * width * static_cast<int64_t>(sizeof(float)));
    rows = hidden_.data();
  }
  for (const PooledRows& one : step.pooled) {
    for (int64_t row = one.begin; row < one.end; ++row) {
      const float* x = rows + row * width;
      for (int64_t e = 0; e < width; ++e) one.sum[e] += static_cast<double>(x[e]);
    }
  }
}

}  // namespace fastllm
