// A request and its sequences, as the engine thread sees them. Plain data: Scheduler moves sequences, EngineCore grows
// them. Built by make_request() on the caller's thread, then owned by the engine thread alone.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/config.h"
#include "engine/mask_exchange.h"
#include "engine/output_channel.h"
#include "engine/params.h"
#include "engine/sampling_rules.h"
#include "text/output_text.h"

namespace fastllm {

struct Request;
struct Submission;

enum class SequenceState : uint8_t {
  kUnborn,    // n > 1: waits for the first sequence to read the prompt; has no tokens, no pages
  kWaiting,   // has no pages
  kRunning,   // has pages
  kFinished,  // has no pages
};

// Tokens and their K/V, as half-open intervals of positions:
//   [0, num_published * P)   in the prefix index, read only
//   [0, num_computed)        K/V is valid in `pages`
//   [num_computed, size)     still to be computed; size - num_computed == 1 is decoding
struct Sequence {
  Request* request = nullptr;
  int32_t index = 0;
  SequenceState state = SequenceState::kUnborn;
  std::vector<int32_t> tokens;  // prompt, then output
  std::vector<int32_t> pages;
  int64_t num_computed = 0;
  int64_t num_published = 0;        // pages
  int64_t num_prompt_logprobs = 0;  // delivered; those of recomputed positions are not delivered again
  SamplingState sampling;
  std::optional<OutputText> text;
  bool awaits_stop_strings = false;  // `text` does not look for them before min_tokens
  std::vector<uint32_t> mask;        // of the next token, if the request is constrained
  bool awaits_mask = false;          // `mask` is that of the last token: the next one was asked for
  bool is_late = false;              // rests until the mask comes; all but the last token is computed
  std::vector<double> pooled;        // [E] sum of hidden states, empty without pooling
  int64_t num_pooled = 0;            // positions in it; recomputed ones are not added again
  RequestMetrics metrics;

  [[nodiscard]] int64_t size() const { return static_cast<int64_t>(tokens.size()); }
  [[nodiscard]] int64_t num_remaining() const { return size() - num_computed; }
};

struct Request {
  int64_t id = 0;  // counted in the order of submission
  int64_t priority = 0;
  std::string cache_salt;
  std::optional<MaskSource> masks;
  std::vector<int32_t> prompt;
  SamplingParams params;
  SamplingRules rules;
  Pooling pooling = Pooling::kNone;
  int64_t max_tokens = 0;  // resolved: prompt + max_tokens fits; 0 with pooling
  double arrival_s = 0.0;
  bool was_scheduled = false;
  int64_t num_unfinished = 0;  // sequences
  std::weak_ptr<Channel> channel;
  std::vector<std::unique_ptr<Sequence>> sequences;  // n

  [[nodiscard]] int64_t prompt_len() const { return static_cast<int64_t>(prompt.size()); }
};

inline int64_t num_generated(const Sequence& s) { return s.size() - s.request->prompt_len(); }

// Nothing more is wanted of token positions of s below this one, so a prefix hit may cover them: all but the last
// token, or those whose prompt log-probabilities were delivered, or whose hidden states are in the mean.
int64_t max_cached_tokens(const Sequence& s);

// Rows of logits that computing positions [first, first + count) of s gives: prompt log-probabilities that were not
// delivered yet, and the row that the next token is drawn from.
struct RowRange {
  int64_t first_prompt_row = 0;  // positions [first_prompt_row, first_prompt_row + num_prompt_rows)
  int64_t num_prompt_rows = 0;
  bool has_sample_row = false;
  [[nodiscard]] int64_t count() const { return num_prompt_rows + (has_sample_row ? 1 : 0); }
};
RowRange rows_of(const Sequence& s, int64_t first, int64_t count);

// Positions [first, end) whose hidden states are pooled when [first, first + count) of s is computed.
struct PooledRange {
  int64_t first = 0;
  int64_t end = 0;
};
PooledRange pooled_of(const Sequence& s, int64_t first, int64_t count);

double monotonic_s();

// Checks everything that can be refused at submission. Throws kInvalidRequest.
std::unique_ptr<Request> make_request(const EngineConfig& config, Submission&& submission,
                                      const std::shared_ptr<Channel>& channel, int64_t id);
// Gives a sequence the tokens of the prompt and what depends on them.
void start(Sequence& sequence, const EngineConfig& config);
// From the next token on, stop strings end the text; later, if a character is incomplete just now.
void start_stop_strings(Sequence& sequence, const EngineConfig& config);

}  // namespace fastllm
