#include "engine/sampling_rules.h"

#include <algorithm>
#include <limits>

#include "core/random.h"

namespace fastllm {
namespace {

constexpr float kBan = -std::numeric_limits<float>::infinity();

// Requests without a seed get one from the engine's: a Philox block keyed by it, the request's number as counter.
uint64_t derive_seed(uint64_t engine_seed, uint64_t request_id) {
  const auto bits =
      philox(engine_seed, {static_cast<uint32_t>(request_id), static_cast<uint32_t>(request_id >> 32), 0x73656564u, 0});
  return (uint64_t{bits[1]} << 32) | bits[0];
}

std::vector<int32_t> to_ids(const std::vector<int64_t>& ids) {
  std::vector<int32_t> result;
  result.reserve(ids.size());
  for (const int64_t id : ids) result.push_back(static_cast<int32_t>(id));
  return result;
}

bool ends_with(std::span<const int32_t> tokens, std::span<const int32_t> tail) {
  return tokens.size() >= tail.size() && std::ranges::equal(tokens.last(tail.size()), tail);
}

}  // namespace

SamplingRules::SamplingRules(const SamplingParams& p, const EngineConfig& config, uint64_t request_id)
    : stop_ids(to_ids(p.stop_token_ids)), min_tokens(p.min_tokens) {
  base.temperature = static_cast<float>(p.temperature);
  base.top_k = static_cast<int32_t>(std::max<int64_t>(p.top_k, 0));
  // The smallest double above 0 is 0 as a float, which would keep nothing.
  base.top_p = std::max(static_cast<float>(p.top_p), std::numeric_limits<float>::min());
  base.min_p = static_cast<float>(p.min_p);
  base.repetition_penalty = std::max(static_cast<float>(p.repetition_penalty), std::numeric_limits<float>::min());
  base.frequency_penalty = static_cast<float>(p.frequency_penalty);
  base.presence_penalty = static_cast<float>(p.presence_penalty);
  base.seed = p.seed ? static_cast<uint64_t>(*p.seed) : derive_seed(config.seed, request_id);
  base.wants_logprob = p.logprobs.has_value();
  base.num_top = static_cast<int32_t>(std::min(p.logprobs.value_or(0), config.vocab_size));
  has_penalties = p.repetition_penalty != 1.0 || p.frequency_penalty != 0.0 || p.presence_penalty != 0.0;

  for (const auto& [id, value] : p.logit_bias) bias.push_back({static_cast<int32_t>(id), static_cast<float>(value)});
  for (const int32_t id : to_ids(p.banned_token_ids)) bias.push_back({id, kBan});
  for (const std::vector<int64_t>& word : p.bad_words) {
    if (word.size() == 1) {
      bias.push_back({static_cast<int32_t>(word[0]), kBan});
    } else {
      bad_words.push_back(to_ids(word));
    }
  }
  if (p.allowed_token_ids) {
    allowed = to_ids(*p.allowed_token_ids);
    std::ranges::sort(allowed);
    const auto rest = std::ranges::unique(allowed);
    allowed.erase(rest.begin(), rest.end());
  }
  if (!p.ignore_eos) eos_ids = config.eos_ids;
}

TokenCount& SamplingState::count_of(int32_t token) {
  const auto [place, is_new] = places_.try_emplace(token, counts_.size());
  if (is_new) counts_.push_back({.token = token});
  return counts_[place->second];
}

void SamplingState::start(const SamplingRules& rules, std::span<const int32_t> prompt) {
  if (!rules.has_penalties) return;
  for (const int32_t token : prompt) count_of(token).in_prompt = true;
}

void SamplingState::add(const SamplingRules& rules, int32_t token) {
  if (rules.has_penalties) ++count_of(token).in_output;
}

void SamplingState::fill(const SamplingRules& rules, std::span<const int32_t> output, SampleRow& row) {
  row = rules.base;
  row.counts = counts_;
  row.allowed = rules.allowed;
  row.bias = rules.bias;

  const bool bans_ends = std::cmp_less(output.size(), rules.min_tokens);
  if (!bans_ends && rules.bad_words.empty()) return;
  bias_.assign(rules.bias.begin(), rules.bias.end());
  if (bans_ends) {
    for (const int32_t id : rules.eos_ids) bias_.push_back({id, kBan});
    for (const int32_t id : rules.stop_ids) bias_.push_back({id, kBan});
  }
  for (const std::vector<int32_t>& word : rules.bad_words) {
    const std::span<const int32_t> head(word.data(), word.size() - 1);
    if (ends_with(output, head)) bias_.push_back({word.back(), kBan});
  }
  row.bias = bias_;
}

}  // namespace fastllm
