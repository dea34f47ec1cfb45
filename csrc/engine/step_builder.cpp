#include "engine/step_builder.h"

#include <algorithm>
#include <span>

#include "core/checked.h"

namespace fastllm {

StepBuilder::StepBuilder(const EngineConfig& c) : config_(c) {
  const auto tokens = static_cast<std::size_t>(c.max_num_batched_tokens);
  const auto seqs = static_cast<std::size_t>(c.max_num_seqs);
  const auto rows = static_cast<std::size_t>(c.max_logit_rows);
  const int64_t pages_per_seq = ceil_div(max_sequence_len(c), c.page_size);
  step_.token_ids.reserve(tokens);
  step_.positions.reserve(tokens);
  step_.slots.reserve(tokens);
  step_.query_start.reserve(seqs + 1);
  step_.context_len.reserve(seqs);
  step_.block_table.reserve(seqs * static_cast<std::size_t>(pages_per_seq));
  step_.copy_from.reserve(seqs);
  step_.copy_to.reserve(seqs);
  step_.logit_rows.reserve(rows);
  step_.rows.reserve(rows);
  step_.results.reserve(rows);
  step_.owners.reserve(rows);
  step_.pooled_rows.reserve(tokens);
  step_.pooled.reserve(seqs);
  step_.top_tokens.resize(rows * kMaxTopLogprobs);
  step_.top_logprobs.resize(rows * kMaxTopLogprobs);
}

Step& StepBuilder::build(const StepPlan& plan) {
  step_.token_ids.clear();
  step_.positions.clear();
  step_.slots.clear();
  step_.query_start.assign(1, 0);
  step_.context_len.clear();
  step_.copy_from.clear();
  step_.copy_to.clear();
  step_.logit_rows.clear();
  step_.rows.clear();
  step_.owners.clear();
  step_.pooled_rows.clear();
  step_.pooled.clear();
  for (const PageCopy& copy : plan.copies) {
    step_.copy_from.push_back(copy.from);
    step_.copy_to.push_back(copy.to);
  }
  for (const ScheduledTokens& item : plan.items) {
    const auto first_token_row = static_cast<int64_t>(step_.token_ids.size());
    add_tokens(item);
    add_rows(item, first_token_row);
    add_pooled(item, first_token_row);
    step_.query_start.push_back(static_cast<int32_t>(step_.token_ids.size()));
    step_.context_len.push_back(static_cast<int32_t>(item.first + item.count));
  }
  step_.results.assign(step_.rows.size(), SampleResult{});
  add_block_table(plan);

  StepView& view = step_.view;
  view.num_tokens = static_cast<int64_t>(step_.token_ids.size());
  view.num_seqs = static_cast<int64_t>(plan.items.size());
  view.max_context_len = plan.items.empty() ? 0 : std::ranges::max(step_.context_len);
  view.token_ids = step_.token_ids.data();
  view.positions = step_.positions.data();
  view.query_start = step_.query_start.data();
  view.context_len = step_.context_len.data();
  view.block_table = step_.block_table.data();
  view.slots = step_.slots.data();
  return step_;
}

void StepBuilder::add_tokens(const ScheduledTokens& item) {
  const Sequence& s = *item.sequence;
  for (int64_t position = item.first; position < item.first + item.count; ++position) {
    const int32_t page = s.pages[static_cast<std::size_t>(position / config_.page_size)];
    step_.token_ids.push_back(s.tokens[static_cast<std::size_t>(position)]);
    step_.positions.push_back(static_cast<int32_t>(position));
    step_.slots.push_back(int64_t{page} * config_.page_size + position % config_.page_size);
  }
}

void StepBuilder::add_rows(const ScheduledTokens& item, int64_t first_token_row) {
  Sequence& s = *item.sequence;
  const RowRange range = rows_of(s, item.first, item.count);
  const auto add = [&](int64_t position) -> SampleRow& {
    const auto place = step_.rows.size() * kMaxTopLogprobs;
    SampleRow& row = step_.rows.emplace_back();
    row.top_tokens = step_.top_tokens.data() + place;
    row.top_logprobs = step_.top_logprobs.data() + place;
    step_.logit_rows.push_back(static_cast<int32_t>(first_token_row + position - item.first));
    step_.owners.push_back(&s);
    return row;
  };
  for (int64_t i = 0; i < range.num_prompt_rows; ++i) {
    const int64_t position = range.first_prompt_row + i;
    SampleRow& row = add(position);
    row.wants_logprob = true;
    row.num_top = static_cast<int32_t>(std::min(*s.request->params.prompt_logprobs, config_.vocab_size));
    row.forced_token = s.tokens[static_cast<std::size_t>(position + 1)];
    row.position = static_cast<uint64_t>(position + 1);
  }
  if (!range.has_sample_row) return;
  SampleRow& row = add(s.size() - 1);
  int32_t* const top_tokens = row.top_tokens;
  float* const top_logprobs = row.top_logprobs;
  const std::span<const int32_t> output = std::span(s.tokens).subspan(s.request->prompt.size());
  s.sampling.fill(s.request->rules, output, row);
  row.mask = s.mask;
  row.sequence = static_cast<uint64_t>(s.index);
  row.position = static_cast<uint64_t>(s.size());
  row.top_tokens = top_tokens;
  row.top_logprobs = top_logprobs;
}

void StepBuilder::add_pooled(const ScheduledTokens& item, int64_t first_token_row) {
  Sequence& s = *item.sequence;
  const PooledRange range = pooled_of(s, item.first, item.count);
  if (range.first == range.end) return;
  const auto begin = static_cast<int64_t>(step_.pooled_rows.size());
  for (int64_t position = range.first; position < range.end; ++position) {
    step_.pooled_rows.push_back(static_cast<int32_t>(first_token_row + position - item.first));
  }
  step_.pooled.push_back({begin, static_cast<int64_t>(step_.pooled_rows.size()), s.pooled.data()});
}

void StepBuilder::add_block_table(const StepPlan& plan) {
  std::size_t width = 1;
  for (const ScheduledTokens& item : plan.items) width = std::max(width, item.sequence->pages.size());
  step_.block_table.assign(plan.items.size() * width, 0);
  for (std::size_t i = 0; i < plan.items.size(); ++i) {
    const std::vector<int32_t>& pages = plan.items[i].sequence->pages;
    std::ranges::copy(pages, step_.block_table.begin() + static_cast<std::ptrdiff_t>(i * width));
  }
  step_.view.max_pages = static_cast<int64_t>(width);
}

}  // namespace fastllm
