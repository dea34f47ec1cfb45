#include "engine/request.h"

#include <algorithm>
#include <chrono>
#include <utility>

#include "core/error.h"
#include "engine/engine.h"

namespace fastllm {
namespace {

constexpr std::size_t kMaxSaltBytes = 256;

// An embedding needs no room for output.
void check_fits(const EngineConfig& config, int64_t prompt_len) {
  const int64_t longest = std::min(config.max_model_len, config.num_pages * config.page_size);
  if (prompt_len <= longest) return;
  const char* limit = longest < config.max_model_len ? "the KV cache (num_pages * page_size)" : "max_model_len";
  fail(ErrorKind::kInvalidRequest, "prompt has ", prompt_len, " tokens, ", limit, " is ", longest,
       "; shorten the prompt or raise the limit");
}

// The largest output that was asked for, if it can ever be held.
int64_t resolve_max_tokens(const EngineConfig& config, int64_t prompt_len, const SamplingParams& params) {
  const int64_t longest = max_sequence_len(config);
  const bool pool_binds = longest < config.max_model_len;
  const char* limit = pool_binds ? "the KV cache (num_pages * page_size + 1)" : "max_model_len";
  if (prompt_len >= longest) {
    fail(ErrorKind::kInvalidRequest, "prompt has ", prompt_len, " tokens, ", limit, " is ", longest,
         ": no room to generate; shorten the prompt or raise the limit");
  }
  if (!params.max_tokens) return longest - prompt_len;
  if (prompt_len + *params.max_tokens > longest) {
    fail(ErrorKind::kInvalidRequest, "prompt has ", prompt_len, " tokens and max_tokens = ", *params.max_tokens,
         ", together ", prompt_len + *params.max_tokens, "; ", limit, " is ", longest,
         "; shorten the prompt, lower max_tokens or raise the limit");
  }
  return *params.max_tokens;
}

}  // namespace

double monotonic_s() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int64_t max_cached_tokens(const Sequence& s) {
  if (s.request->pooling == Pooling::kMean) return s.num_pooled;
  const int64_t all_but_last = s.size() - 1;
  const bool wants_prompt_rows = s.request->params.prompt_logprobs.has_value() && s.index == 0;
  // Position p of the prompt is scored by the row of p - 1, so with d delivered the next row is that of token d.
  if (wants_prompt_rows && s.num_prompt_logprobs < s.request->prompt_len() - 1) return s.num_prompt_logprobs;
  return all_but_last;
}

RowRange rows_of(const Sequence& s, int64_t first, int64_t count) {
  RowRange rows;
  if (s.request->pooling != Pooling::kNone) return rows;
  rows.has_sample_row = first + count == s.size();
  if (s.request->params.prompt_logprobs.has_value() && s.index == 0) {
    rows.first_prompt_row = std::max(first, s.num_prompt_logprobs);
    const int64_t end = std::min(first + count, s.request->prompt_len() - 1);
    rows.num_prompt_rows = std::max<int64_t>(end - rows.first_prompt_row, 0);
  }
  return rows;
}

PooledRange pooled_of(const Sequence& s, int64_t first, int64_t count) {
  const int64_t end = first + count;
  switch (s.request->pooling) {
    case Pooling::kNone:
      return {};
    case Pooling::kLast:
      return {.first = end == s.size() ? end - 1 : end, .end = end};
    case Pooling::kMean:
      return {.first = std::clamp(s.num_pooled, first, end), .end = end};
  }
  return {};
}

std::unique_ptr<Request> make_request(const EngineConfig& config, Submission&& submission,
                                      const std::shared_ptr<Channel>& channel, int64_t id) {
  const SamplingParams& params = submission.params;
  const auto prompt_len = static_cast<int64_t>(submission.prompt_token_ids.size());
  const bool is_pooled = submission.pooling != Pooling::kNone;
  if (is_pooled && (config.hidden_size == 0 || params.n != 1 || params.detokenize)) {
    fail(ErrorKind::kInvalidRequest, "an embedding has n = 1 and no text, and needs a model with hidden states");
  }
  if (submission.prompt_token_ids.empty()) fail(ErrorKind::kInvalidRequest, "the prompt is empty (0 tokens)");
  if (submission.cache_salt.size() > kMaxSaltBytes) {
    fail(ErrorKind::kInvalidRequest, "cache_salt has ", submission.cache_salt.size(), " bytes, at most ", kMaxSaltBytes,
         " are allowed");
  }
  check(params, config.vocab_size);
  if (submission.masks) check_mask(submission.masks->first_mask, config.vocab_size);
  if (config.byte_table == nullptr && !params.stop.empty()) {
    fail(ErrorKind::kInvalidRequest, "stop strings need a tokenizer, and this engine has none; use stop_token_ids");
  }
  auto request = std::make_unique<Request>();
  request->id = id;
  request->priority = submission.priority;
  request->pooling = submission.pooling;
  if (is_pooled) {
    check_fits(config, prompt_len);
  } else {
    request->max_tokens = resolve_max_tokens(config, prompt_len, params);
  }
  request->prompt = checked_token_ids("prompt_token_ids", submission.prompt_token_ids, config.vocab_size);
  request->cache_salt = std::move(submission.cache_salt);
  request->masks = std::move(submission.masks);
  request->rules = SamplingRules(params, config, static_cast<uint64_t>(id));
  request->arrival_s = monotonic_s();
  request->channel = channel;
  request->num_unfinished = params.n;
  for (int32_t i = 0; i < params.n; ++i) {
    auto sequence = std::make_unique<Sequence>();
    sequence->request = request.get();
    sequence->index = i;
    sequence->metrics.arrival_s = request->arrival_s;
    sequence->metrics.num_prompt_tokens = request->prompt_len();
    request->sequences.push_back(std::move(sequence));
  }
  request->params = std::move(submission.params);
  start(*request->sequences.front(), config);
  if (is_pooled) request->sequences.front()->pooled.assign(static_cast<std::size_t>(config.hidden_size), 0.0);
  return request;
}

void start(Sequence& sequence, const EngineConfig& config) {
  const Request& request = *sequence.request;
  const SamplingParams& params = request.params;
  // All pages it can ever have: the scheduler never allocates.
  const int64_t longest = request.prompt_len() + request.max_tokens;
  sequence.pages.reserve(static_cast<std::size_t>((longest + config.page_size - 1) / config.page_size));
  sequence.tokens = request.prompt;
  if (request.masks) sequence.mask = request.masks->first_mask;
  sequence.sampling.start(request.rules, request.prompt);
  if (!params.detokenize || config.byte_table == nullptr) return;
  sequence.awaits_stop_strings = params.min_tokens > 0 && !params.stop.empty();
  const std::vector<std::string> none;
  sequence.text.emplace(config.byte_table, sequence.awaits_stop_strings ? none : params.stop,
                        params.include_stop_str_in_output, params.skip_special_tokens);
}

void start_stop_strings(Sequence& sequence, const EngineConfig& config) {
  // Without stop strings only the bytes of an incomplete character are held back; a new text would lose them.
  OutputText probe = *sequence.text;
  if (!probe.finish().text.empty()) return;
  const SamplingParams& params = sequence.request->params;
  sequence.awaits_stop_strings = false;
  sequence.text.emplace(config.byte_table, params.stop, params.include_stop_str_in_output, params.skip_special_tokens);
}

}  // namespace fastllm
