#include "engine/scorer.h"

#include <algorithm>
#include <array>
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
      device_step_(*model_->backend, limits()),
      block_table_(static_cast<std::size_t>(ceil_div(max_tokens, page_size_))) {
  std::iota(block_table_.begin(), block_table_.end(), 0);
}

StepLimits Scorer::limits() const { return {chunk_, 1, chunk_, ceil_div(max_tokens_, page_size_)}; }

void Scorer::append(std::span<const int64_t> token_ids, int64_t first_row, float* logits) {
  const std::vector<int32_t> ids = checked_token_ids("token_ids", token_ids, vocab_size());
  const auto count = static_cast<int64_t>(ids.size());
  if (num_tokens_ + count > max_tokens_) {
    fail(ErrorKind::kInvalidRequest, "scorer: ", num_tokens_, " + ", count, " tokens, at most ", max_tokens_, " fit");
  }
  std::vector<int32_t> positions(static_cast<std::size_t>(count));
  std::iota(positions.begin(), positions.end(), static_cast<int32_t>(num_tokens_));
  const std::vector<int64_t> slots(positions.begin(), positions.end());

  for (int64_t begin = 0; begin < count; begin += chunk_) {
    const int64_t end = std::min(begin + chunk_, count);
    const std::array<int32_t, 2> query_start{0, static_cast<int32_t>(end - begin)};
    const auto context_len = static_cast<int32_t>(num_tokens_ + end - begin);
    std::vector<int32_t> rows(static_cast<std::size_t>(std::max<int64_t>(end - std::max(begin, first_row), 0)));
    std::iota(rows.begin(), rows.end(), static_cast<int32_t>(std::max(begin, first_row) - begin));
    StepView step;
    step.num_tokens = end - begin;
    step.num_seqs = 1;
    step.max_pages = static_cast<int64_t>(block_table_.size());
    step.max_context_len = context_len;
    step.token_ids = ids.data() + begin;
    step.positions = positions.data() + begin;
    step.query_start = query_start.data();
    step.context_len = &context_len;
    step.block_table = block_table_.data();
    step.slots = slots.data() + begin;
    const DeviceStep::Arrays arrays = device_step_.upload({step, rows, {}});
    const float* found = decoder_.forward(arrays.view, kv_.layers(), arrays.logit_rows);
    const int64_t num_logits = checked_mul(static_cast<int64_t>(rows.size()), vocab_size());
    model_->backend->download(logits, found, num_logits * size_of(DType::kF32));
    logits += num_logits;
    num_tokens_ += end - begin;
  }
}

}  // namespace fastllm
