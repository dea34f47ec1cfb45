// From SamplingParams to the SampleRow of a step: what is fixed per request, and what a sequence adds as it grows.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "engine/config.h"
#include "engine/params.h"
#include "ops/sampling.h"

namespace fastllm {

// Const after construction, shared by the sequences of a request. Expects checked params.
struct SamplingRules {
  SamplingRules() = default;
  SamplingRules(const SamplingParams& params, const EngineConfig& config, uint64_t request_id);

  SampleRow base;                // everything that no token changes
  std::vector<LogitBias> bias;   // logit_bias, then bans
  std::vector<int32_t> allowed;  // ascending, distinct
  std::vector<int32_t> eos_ids;  // empty with ignore_eos
  std::vector<int32_t> stop_ids;
  std::vector<std::vector<int32_t>> bad_words;  // of two tokens and more; single ones are in bias
  int64_t min_tokens = 0;
  bool has_penalties = false;
};

// The part that depends on the tokens of one sequence.
class SamplingState {
 public:
  // Counts the prompt if there are penalties.
  void start(const SamplingRules& rules, std::span<const int32_t> prompt);
  void add(const SamplingRules& rules, int32_t token);
  // Fills everything of the row but the top arrays; its spans point into rules and this until the next call.
  void fill(const SamplingRules& rules, std::span<const int32_t> output, SampleRow& row);

 private:
  TokenCount& count_of(int32_t token);

  std::vector<TokenCount> counts_;
  std::unordered_map<int32_t, std::size_t> places_;  // of a token in counts_
  std::vector<LogitBias> bias_;                      // of this step, when it is more than the rules'
};

}  // namespace fastllm
