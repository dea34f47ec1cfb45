// The engine: EngineCore on its own thread. Nothing here touches Python, installs a signal handler or a global.
//
// Thread contract: every public member may be called from any thread at any time. The engine thread sleeps on a
// condition variable when there is nothing to do. After fork() every call in the child throws kEngineClosed, and the
// destructor there leaks instead of waiting for threads that do not exist.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/config.h"
#include "engine/executor.h"
#include "engine/mask_exchange.h"
#include "engine/output_channel.h"
#include "engine/params.h"

namespace fastllm {

struct Submission {
  std::vector<int64_t> prompt_token_ids;
  SamplingParams params;
  Pooling pooling = Pooling::kNone;  // otherwise nothing is generated: the result is the prompt's embedding
  int64_t priority = 0;              // lower is served first
  std::string cache_salt;            // requests share cached prefixes only with requests of the same salt; <= 256 bytes
  std::optional<MaskSource> masks;   // of requests that a grammar constrains
};

struct EngineStats {
  int64_t num_running = 0;  // sequences
  int64_t num_waiting = 0;  // sequences, submitted ones that the engine thread has not seen yet included
  int64_t num_pages = 0;
  int64_t num_pages_free = 0;
  int64_t num_pages_cached = 0;
  int64_t num_pages_referenced = 0;
  int64_t num_steps = 0;
  int64_t num_failed_steps = 0;
  int64_t num_failed_steps_in_a_row = 0;
  int64_t num_requests = 0;  // accepted so far
  int64_t num_requests_finished = 0;
  int64_t num_preemptions = 0;
  int64_t prefix_query_tokens = 0;  // tokens looked up in the prefix cache
  int64_t prefix_hit_tokens = 0;
  int64_t num_prompt_tokens = 0;  // computed, recomputation included
  int64_t num_generated_tokens = 0;
  int64_t num_nonfinite_rows = 0;
  int64_t num_masks = 0;       // asked for
  int64_t num_late_masks = 0;  // came after the token was to be drawn, which is then computed again
  double last_step_s = 0.0;    // monotonic clock, 0: none yet
  // Seconds since the start. What a request is charged adds up to charged_s; the parts are of all steps.
  double charged_s = 0.0;
  double aborted_s = 0.0;  // of that, charged to sequences that were aborted
  double kv_page_s = 0.0;
  double schedule_s = 0.0;
  double forward_s = 0.0;  // with the sampling of steps whose device did both without a stop in between
  double sample_s = 0.0;
  double hand_over_s = 0.0;
  int64_t read_bytes = 0;                       // that the forward passes had to read, without experts
  std::shared_ptr<const ExpertTotals> experts;  // as of at most a second ago while steps run; nullptr: none yet
};

class Engine {
 public:
  // Takes the executor. Throws kInvalidRequest if the config is inconsistent.
  Engine(const EngineConfig& config, std::unique_ptr<Executor> executor);
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  [[nodiscard]] std::shared_ptr<Channel> open_channel();
  // Checks everything that can be refused, queues the request, returns its id (counted from 1). Throws
  // kInvalidRequest, kQueueFull, kEngineClosed.
  int64_t submit(Submission submission, const std::shared_ptr<Channel>& channel);
  // Takes effect before the next step; every unfinished sequence of the request ends with "abort" and returns its
  // pages. Unknown and finished ids are ignored.
  void abort(int64_t request_id);
  // For the one who makes masks; see MaskExchange.
  std::vector<MaskTask> poll_mask_tasks(double timeout_s);
  void reply_masks(std::vector<MaskReply> replies);
  [[nodiscard]] EngineStats stats() const;
  [[nodiscard]] const EngineConfig& config() const;
  // Ends the thread, fails what is pending with kEngineClosed, frees the executor. Idempotent.
  void close();
  [[nodiscard]] bool is_closed() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace fastllm
