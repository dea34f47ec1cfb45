#include "engine/scorer.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "core/checked.h"
#include "engine/params.h"

namespace fastllm {
namespace {

int64_t checked_size(const char* name, int64_t value, int64_t max) {
  if (value >= 1 && value <= max) return value;
  fail(ErrorKind::kInvalidRequest, "scorer: ", name, " = ", value, " is not in [1, ", max, "]");
}

}  // namespace

Scorer::Scorer(std::shared_ptr<Model> model, int64_t max_tokens, int64_t chunk, DType kv_dtype)
    : model_(std::move(model)),
      page_size_(model_->backend->page_size()),
      max_tokens_(checked_size("max_tokens", max_tokens, model_->spec.max_position)),
      chunk_(checked_size("chunk", chunk, 1 << 24)),
      kv_(model_->kv_specs(kv_dtype), ceil_div(max_tokens, page_size_), *model_->backend),
      decoder_(model_->spec, model_->loaded_weights(), *model_->backend, limits()),
      device_step_(*model_->backend, limits()) {
  step_.block_table.resize(static_cast<std::size_t>(limits().max_pages_per_seq));
  std::iota(step_.block_table.begin(), step_.block_table.end(), 0);
}

StepLimits Scorer::limits() const { return {chunk_, 1, chunk_, ceil_div(max_tokens_, page_size_)}; }

void Scorer::append(std::span<const int64_t> token_ids, int64_t first_row, float* logits) {
  const std::vector<int32_t> ids = checked_token_ids("token_ids", token_ids, vocab_size());
  const auto count = static_cast<int64_t>(ids.size());
  if (num_tokens_ + count > max_tokens_) {
    fail(ErrorKind::kInvalidRequest, "scorer: ", num_tokens_, " + ", count, " tokens, at most ", max_tokens_, " fit");
  }
  for (int64_t begin = 0; begin < count; begin += chunk_) {
    const int64_t end = std::min(begin + chunk_, count);
    build_step(std::span(ids).subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin)),
               std::max<int64_t>(first_row - begin, 0));
    const DeviceStep::Arrays arrays = device_step_.upload(step_);
    const float* found = decoder_.forward(arrays.view, kv_.layers(), arrays.logit_rows);
    num_tokens_ += end - begin;
    const int64_t size = checked_mul(static_cast<int64_t>(step_.logit_rows.size()), vocab_size());
    if (size == 0) continue;
    model_->backend->download(logits, found, size * static_cast<int64_t>(sizeof(float)));
    logits += size;
  }
}

// The next tokens of the sequence; logits of those from first_row on.
void Scorer::build_step(std::span<const int32_t> ids, int64_t first_row) {
  const auto count = static_cast<int64_t>(ids.size());
  step_.token_ids.assign(ids.begin(), ids.end());
  step_.positions.resize(ids.size());
  std::iota(step_.positions.begin(), step_.positions.end(), static_cast<int32_t>(num_tokens_));
  step_.slots.assign(step_.positions.begin(), step_.positions.end());
  step_.query_start = {0, static_cast<int32_t>(count)};
  step_.context_len = {static_cast<int32_t>(num_tokens_ + count)};
  step_.logit_rows.resize(static_cast<std::size_t>(std::max<int64_t>(count - first_row, 0)));
  std::iota(step_.logit_rows.begin(), step_.logit_rows.end(), static_cast<int32_t>(first_row));
  StepView& view = step_.view;
  view.num_tokens = count;
  view.num_seqs = 1;
  view.max_pages = static_cast<int64_t>(step_.block_table.size());
  view.max_context_len = num_tokens_ + count;
  view.token_ids = step_.token_ids.data();
  view.positions = step_.positions.data();
  view.query_start = step_.query_start.data();
  view.context_len = step_.context_len.data();
  view.block_table = step_.block_table.data();
  view.slots = step_.slots.data();
}

}  // namespace fastllm
