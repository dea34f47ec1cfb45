// Sampling parameters, declared once. visit_params() lists name, member, range and help line of each; the binding, the
// Python class, the checks and the documentation derive from that list or are compared with it by a test.
// Names and meanings are vLLM's.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace fastllm {

struct SamplingParams {
  int64_t n = 1;
  double temperature = 1.0;
  double top_p = 1.0;
  int64_t top_k = 0;
  double min_p = 0.0;
  double repetition_penalty = 1.0;
  double presence_penalty = 0.0;
  double frequency_penalty = 0.0;
  std::optional<int64_t> seed;
  std::vector<std::string> stop;
  std::vector<int64_t> stop_token_ids;
  std::vector<std::vector<int64_t>> bad_words;
  bool include_stop_str_in_output = false;
  bool ignore_eos = false;
  std::optional<int64_t> max_tokens = 16;
  int64_t min_tokens = 0;
  std::optional<int64_t> logprobs;
  std::optional<int64_t> prompt_logprobs;
  std::vector<std::pair<int64_t, double>> logit_bias;
  std::optional<std::vector<int64_t>> allowed_token_ids;
  std::vector<int64_t> banned_token_ids;
  bool skip_special_tokens = true;
  bool detokenize = true;
};

// What a request for an embedding wants of the final hidden states (normed, before the output head).
enum class Pooling : uint8_t {
  kNone,  // no embedding
  kLast,  // that of the last token
  kMean,  // the mean over all tokens
};

// What a value may be. Scalars: [min, max], with is_open (min, max]; NaN is never inside. Lists: at most max_items
// items, each (strings: bytes; lists: token ids) of 1 .. max_item_size. Token ids are those of the model.
struct ParamRange {
  double min = -std::numeric_limits<double>::infinity();
  double max = std::numeric_limits<double>::infinity();
  bool is_open = false;
  bool is_token_id = false;  // of keys, where there are values too; min and max are then those of the values
  int64_t max_items = 0;
  int64_t max_item_size = 0;
};

constexpr ParamRange between(double min, double max) { return {.min = min, .max = max}; }
constexpr ParamRange above(double min, double max) { return {.min = min, .max = max, .is_open = true}; }
constexpr ParamRange token_ids(int64_t max_items, int64_t max_item_size = 0) {
  return {.is_token_id = true, .max_items = max_items, .max_item_size = max_item_size};
}
constexpr double kMaxTokenCount = 1 << 30;

// v(name, pointer to member, range, help) for each parameter.
template <class Visitor>
void visit_params(Visitor&& v) {
  using P = SamplingParams;
  v("n", &P::n, between(1, 128), "number of sequences generated for the prompt");
  v("temperature", &P::temperature, between(0, 100), "divides the logits; below 1e-5 the most likely token is taken");
  v("top_p", &P::top_p, above(0, 1), "keep the smallest set of most likely tokens with this probability mass");
  v("top_k", &P::top_k, between(-1, kMaxTokenCount), "keep this many most likely tokens; 0 or -1 keeps all");
  v("min_p", &P::min_p, between(0, 1), "drop tokens below this fraction of the largest probability");
  v("repetition_penalty", &P::repetition_penalty, above(0, 100),
    "divides positive and multiplies negative logits of tokens in prompt or output; above 1 discourages them");
  v("presence_penalty", &P::presence_penalty, between(-2, 2), "subtracted once for each token that was generated");
  v("frequency_penalty", &P::frequency_penalty, between(-2, 2), "subtracted for each time a token was generated");
  v("seed", &P::seed, ParamRange{}, "same seed, same prompt, same parameters: same output; none: the engine chooses");
  v("stop", &P::stop, ParamRange{.max_items = 16, .max_item_size = 1024}, "strings that end the output");
  v("stop_token_ids", &P::stop_token_ids, token_ids(1024), "token ids that end the output");
  v("bad_words", &P::bad_words, token_ids(1024, 256), "token id sequences that are never completed in the output");
  v("include_stop_str_in_output", &P::include_stop_str_in_output, ParamRange{}, "keep the stop string in the text");
  v("ignore_eos", &P::ignore_eos, ParamRange{}, "go on after the end-of-sequence token");
  v("max_tokens", &P::max_tokens, between(1, kMaxTokenCount),
    "most tokens to generate; none: until the longest sequence that the engine holds");
  v("min_tokens", &P::min_tokens, between(0, kMaxTokenCount), "no end-of-sequence, stop id or stop string before this");
  v("logprobs", &P::logprobs, between(0, 20), "log-probabilities of this many most likely tokens, and of the chosen");
  v("prompt_logprobs", &P::prompt_logprobs, between(0, 20), "the same for the tokens of the prompt");
  v("logit_bias", &P::logit_bias, ParamRange{.min = -100, .max = 100, .is_token_id = true, .max_items = 1024},
    "added to the logits of these token ids");
  v("allowed_token_ids", &P::allowed_token_ids, token_ids(1 << 24), "only these token ids are generated");
  v("banned_token_ids", &P::banned_token_ids, token_ids(1 << 16), "these token ids are never generated");
  v("skip_special_tokens", &P::skip_special_tokens, ParamRange{}, "leave special tokens out of the text");
  v("detokenize", &P::detokenize, ParamRange{}, "make text of the generated token ids");
}

// Throws kInvalidRequest naming the parameter, its value and what is allowed.
void check(const SamplingParams& params, int64_t vocab_size);
// Throws kInvalidRequest unless every id is in [0, vocab_size); returns them as the type that indexes.
std::vector<int32_t> checked_token_ids(const char* name, std::span<const int64_t> ids, int64_t vocab_size);

// One row of the table for other languages: values as text, "" where there is none.
struct ParamInfo {
  std::string name;
  std::string type;           // "int", "float", "bool", "list[str]", "list[int]", "list[list[int]]", "dict[int, float]"
  bool is_optional = false;   // may be None
  std::string default_value;  // Python literal
  ParamRange range;
  std::string help;
};
std::vector<ParamInfo> param_table();

}  // namespace fastllm
