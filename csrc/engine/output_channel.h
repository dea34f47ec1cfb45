// Where results go. The engine thread adds deltas, a consumer takes them; what is not taken is merged per sequence, so
// a channel that nobody reads holds at most the output of its requests.
//
// Thread contract: add() and flush() from the engine thread, poll() from any. add() wakes nobody; flush() wakes the
// consumer once per step. The engine keeps only a weak reference: a dropped channel aborts its requests.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "core/error.h"

namespace fastllm {

enum class FinishReason : uint8_t { kNone, kStop, kLength, kAbort, kError };

constexpr const char* name_of(FinishReason r) {
  switch (r) {
    case FinishReason::kNone:
      return "";
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kAbort:
      return "abort";
    case FinishReason::kError:
      return "error";
  }
  return "";
}

struct TopLogprob {
  int32_t token = 0;
  float logprob = 0.0f;
};
struct TokenLogprobs {
  int32_t token = 0;
  float logprob = 0.0f;
  int32_t rank = 0;
  std::vector<TopLogprob> top;  // most likely first
};

// Times are seconds of the monotonic clock (Python: time.monotonic()); 0: not yet.
struct RequestMetrics {
  double arrival_s = 0.0;
  double first_scheduled_s = 0.0;
  double first_token_s = 0.0;
  double last_token_s = 0.0;
  int64_t num_prompt_tokens = 0;
  int64_t num_cached_tokens = 0;  // of the prompt, taken from the prefix cache
  int64_t num_generated_tokens = 0;
  int64_t num_preemptions = 0;
  double device_s = 0.0;   // its share of the engine's time, see EngineCore::charge()
  double kv_page_s = 0.0;  // pages times seconds; a page with several holders is shared by them
};

struct RequestDelta {
  int64_t request_id = 0;
  int32_t index = 0;  // of the sequence in its request, 0 .. n-1
  std::vector<int32_t> token_ids;
  std::string text;
  std::vector<TokenLogprobs> logprobs;         // one per token id, if asked for
  std::vector<TokenLogprobs> prompt_logprobs;  // of prompt positions 1, 2, ... in order, if asked for; index 0 only
  std::vector<float> embedding;                // with the last delta of a request that wants one
  FinishReason finish_reason = FinishReason::kNone;
  std::variant<std::monostate, int32_t, std::string> stop_reason;  // stop token id or stop string; eos: none
  ErrorKind error_kind = ErrorKind::kInternal;                     // read when finish_reason is kError
  std::string error_message;
  RequestMetrics metrics;
};

// enable_shared_from_this: bindings must share this ownership, not make another one.
class Channel : public std::enable_shared_from_this<Channel> {
 public:
  Channel();
  ~Channel();
  Channel(const Channel&) = delete;
  Channel& operator=(const Channel&) = delete;

  void add(RequestDelta&& delta);
  void flush() noexcept;
  // The engine has ended: poll() returns what is left and then waits no more.
  void close() noexcept;
  // A delta could not be stored: the next poll() throws kOutOfMemory.
  void mark_lost() noexcept;

  // Takes all deltas, at most one per sequence, in the order of their first token. Waits up to timeout_s for one
  // (0: not at all); an empty list is a timeout. Throws kEngineClosed in a process forked after this was made.
  std::vector<RequestDelta> poll(double timeout_s);
  [[nodiscard]] bool is_closed() const;

 private:
  void check_process() const;

  struct State;
  std::unique_ptr<State> state_;  // leaked in a forked child: its lock and waiters belong to threads that are not there
};

}  // namespace fastllm
