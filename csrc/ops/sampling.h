// Arguments of the `sample` operation. Order, fixed for every backend and documented in docs/determinism.md:
//   raw logits -> (log-probabilities of the result are taken here)
//   -> repetition, frequency, presence penalties -> bias and bans -> allowed ids and mask
//   -> temperature -> top_k -> top_p -> min_p -> draw by inverse CDF in ascending token id.
// temperature < 1e-5 is greedy: the largest logit after bias; ties go to the lower token id.
#pragma once

#include <cstdint>
#include <span>

namespace fastllm {

struct TokenCount {
  int32_t token = 0;
  int32_t in_output = 0;  // times generated so far
  bool in_prompt = false;
};

struct LogitBias {
  int32_t token = 0;
  float bias = 0.0f;  // added; -infinity bans
};

struct SampleRow {
  float temperature = 1.0f;
  int32_t top_k = 0;  // 0: all
  float top_p = 1.0f;
  float min_p = 0.0f;
  float repetition_penalty = 1.0f;  // on tokens of prompt and output (HF: divide positive, multiply negative logits)
  float frequency_penalty = 0.0f;   // per generated occurrence
  float presence_penalty = 0.0f;    // once per generated token
  uint64_t seed = 0;
  uint64_t sequence = 0;               // index of the sequence in its request
  uint64_t position = 0;               // position that the drawn token will have
  std::span<const TokenCount> counts;  // distinct tokens; empty when no penalty is set
  std::span<const LogitBias> bias;     // applied in order
  std::span<const int32_t> allowed;    // ascending; empty: all
  std::span<const uint32_t> mask;  // bit i % 32 of word i / 32 allows id i, ids behind its end are banned; empty: all
  // Log-probabilities: the chosen token's, its rank, and the num_top most likely. top arrays have num_top entries.
  bool wants_logprob = false;
  int32_t num_top = 0;
  int32_t* top_tokens = nullptr;
  float* top_logprobs = nullptr;
  // >= 0: draw nothing, report this token (prompt log-probabilities).
  int32_t forced_token = -1;
};

struct SampleResult {
  int32_t token = -1;
  bool is_finite = false;  // false: the row held a NaN or +infinity, or every token was banned; token is -1
  float logprob = 0.0f;    // of `token` under the raw logits; valid if wants_logprob
  int32_t rank = 0;        // 1: the most likely; valid if wants_logprob
};

struct SampleArgs {
  float* logits = nullptr;  // [R, V] in memory of the backend, overwritten
  int64_t num_rows = 0;
  int64_t vocab_size = 0;
  int64_t stride = 0;
  const SampleRow* rows = nullptr;  // [R]
  SampleResult* results = nullptr;  // [R]
};

}  // namespace fastllm
