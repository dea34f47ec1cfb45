#include "engine/fake_executor.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <thread>

#include "core/checked.h"
#include "core/random.h"

namespace fastllm {
namespace {

// splitmix64 (Steele, Lea, Flood 2014)
constexpr uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t hash_of(std::span<const int32_t> tokens) {
  uint64_t h = tokens.size();
  for (const int32_t token : tokens) h = mix(h ^ static_cast<uint32_t>(token));
  return h;
}

bool is_banned(const SampleRow& row, int32_t token) {
  if (!row.allowed.empty() && !std::ranges::binary_search(row.allowed, token)) return true;
  const auto word = static_cast<std::size_t>(token / 32);
  if (word < row.mask.size() && (row.mask[word] >> (token % 32) & 1u) == 0) return true;
  return std::ranges::any_of(row.bias, [token](const LogitBias& b) { return b.token == token && std::isinf(b.bias); });
}

}  // namespace

int32_t fake_next_token(std::span<const int32_t> context, const SampleRow& row, int64_t vocab_size) {
  uint64_t h = hash_of(context);
  if (row.temperature >= 1e-5f) h ^= std::bit_cast<uint64_t>(uniform(row.seed, row.sequence, row.position));
  for (const TokenCount& c : row.counts) {
    h += mix((uint64_t{static_cast<uint32_t>(c.token)} << 32) ^ (static_cast<uint64_t>(c.in_output) << 1) ^
             static_cast<uint64_t>(c.in_prompt));
  }
  const auto first = static_cast<int64_t>(mix(h) % static_cast<uint64_t>(vocab_size));
  for (int64_t i = 0; i < vocab_size; ++i) {
    const auto token = static_cast<int32_t>((first + i) % vocab_size);
    if (!is_banned(row, token)) return token;
  }
  return -1;
}

FakeExecutor::FakeExecutor(const EngineConfig& config, std::shared_ptr<FakeControls> controls)
    : page_size_(config.page_size), vocab_size_(config.vocab_size), controls_(std::move(controls)) {
  cells_.resize(narrow<std::size_t>(checked_mul(config.num_pages, config.page_size, "fake cells"), "fake cells"));
}

void FakeExecutor::execute(Step& step) {
  ++controls_->num_steps;
  const int64_t delay_us = controls_->delay_us;
  if (delay_us > 0) std::this_thread::sleep_for(std::chrono::microseconds(delay_us));
  copy_pages(step);
  store(step.view);
  if (controls_->fail_in > 0 && --controls_->fail_in == 0) fail(ErrorKind::kDevice, "fake executor: injected fault");
  pool(step);
  if (step.before_sample) step.before_sample(static_cast<double>(delay_us) * 1e-6);
  int64_t s = 0;
  for (int64_t row = 0; row < step.num_rows(); ++row) {
    while (step.view.query_start[s + 1] <= step.logit_rows[static_cast<std::size_t>(row)]) ++s;
    sample(step, row, s);
  }
}

void FakeExecutor::copy_pages(const Step& step) {
  for (std::size_t i = 0; i < step.copy_from.size(); ++i) {
    // Backends may copy in any order.
    if (std::ranges::find(step.copy_to, step.copy_from[i]) != step.copy_to.end()) ++controls_->num_bad_reads;
    const auto from = cells_.begin() + step.copy_from[i] * page_size_;
    std::copy(from, from + page_size_, cells_.begin() + step.copy_to[i] * page_size_);
  }
}

void FakeExecutor::store(const StepView& step) {
  for (int64_t t = 0; t < step.num_tokens; ++t) {
    cells_[static_cast<std::size_t>(step.slots[t])] = {step.token_ids[t], step.positions[t]};
  }
}

std::span<const int32_t> FakeExecutor::read(const StepView& step, int64_t s, int64_t position) {
  context_.clear();
  for (int64_t p = 0; p <= position; ++p) {
    const int32_t page = step.block_table[s * step.max_pages + p / page_size_];
    const Cell& cell = cells_[static_cast<std::size_t>(page * page_size_ + p % page_size_)];
    if (cell.position != p) ++controls_->num_bad_reads;
    context_.push_back(cell.token);
  }
  return context_;
}

void FakeExecutor::pool(const Step& step) {
  for (const PooledRows& rows : step.pooled) {
    for (int64_t i = rows.begin; i < rows.end; ++i) {
      const int32_t row = step.pooled_rows[static_cast<std::size_t>(i)];
      int64_t s = 0;
      while (step.view.query_start[s + 1] <= row) ++s;
      *rows.sum += static_cast<double>(hash_of(read(step.view, s, step.view.positions[row])) % 1000);
    }
  }
}

void FakeExecutor::sample(Step& step, int64_t row_idx, int64_t s) {
  const auto r = static_cast<std::size_t>(row_idx);
  const SampleRow& row = step.rows[r];
  SampleResult& result = step.results[r];
  const std::span<const int32_t> context = read(step.view, s, step.view.positions[step.logit_rows[r]]);
  const int64_t nan_token = controls_->nan_token;
  const bool has_nan = std::ranges::any_of(context, [nan_token](int32_t token) { return token == nan_token; });
  result.token = row.forced_token >= 0 ? row.forced_token : fake_next_token(context, row, vocab_size_);
  result.is_finite = result.token >= 0 && !has_nan;
  const uint64_t h = mix(hash_of(context) ^ static_cast<uint32_t>(result.token));
  result.logprob = -static_cast<float>(h % 1000) / 100.0f;
  result.rank = static_cast<int32_t>(h % 7) + 1;
  for (int32_t i = 0; i < row.num_top; ++i) {
    row.top_tokens[i] = static_cast<int32_t>((static_cast<int64_t>(h % 65536) + i) % vocab_size_);
    row.top_logprobs[i] = -static_cast<float>(i);
  }
}

}  // namespace fastllm
