// The engine without its thread: requests in, steps, deltas out. One thread at a time; deterministic, so that a
// simulation can drive it step by step.
//
// A request lives here from add() until all its sequences have finished; then nothing of it is left. Every way out of a
// sequence (stop, length, abort, error, closed) goes through finish(), which returns its pages first.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "engine/config.h"
#include "engine/engine.h"
#include "engine/executor.h"
#include "engine/mask_exchange.h"
#include "engine/request.h"
#include "engine/scheduler.h"
#include "engine/step_builder.h"

namespace fastllm {

class EngineCore {
 public:
  EngineCore(const EngineConfig& config, std::unique_ptr<Executor> executor);

  void add(std::unique_ptr<Request> request);
  void abort(int64_t request_id);
  // Runs one step. False if there was nothing to do. What goes wrong in a step ends its sequences, not the engine.
  bool step();
  // Ends everything that is left.
  void fail_all(ErrorKind kind, const std::string& message);

  [[nodiscard]] bool has_work() const { return scheduler_.has_work(); }
  // Whether step() would do anything: false while all that could run rests until its mask comes.
  [[nodiscard]] bool can_step() const { return has_work() && (!is_blocked_ || masks_->has_replies()); }
  [[nodiscard]] const std::shared_ptr<MaskExchange>& masks() const { return masks_; }
  [[nodiscard]] int64_t num_unscheduled_requests() const { return num_unscheduled_; }
  [[nodiscard]] EngineStats stats() const;
  // Throws kInternal if anything disagrees. For tests, between steps.
  void check_integrity() const;
  [[nodiscard]] const PagePool& pages() const { return cache_.pool(); }

 private:
  struct Cause {
    ErrorKind kind = ErrorKind::kInternal;
    std::string message;
  };
  static Cause current_exception_cause() noexcept;
  static RequestDelta error_delta(const Sequence& sequence, const Cause& cause) noexcept;

  [[nodiscard]] bool run_step();
  void read_expert_totals() noexcept;
  void charge(const std::vector<ScheduledTokens>& items, double seconds);
  void mark_scheduled(const StepPlan& plan);
  void abort_abandoned();
  [[nodiscard]] Sequence* find_awaiting_mask(int64_t request_id, int32_t index);
  void receive_masks();
  void bring_masks(int64_t num_awaited, double forward_s);
  void end_by_grammar();
  void fork_children(const Sequence& parent);
  void process(const ScheduledTokens& item, int64_t row_begin, int64_t row_end);
  void finish_embedding(Sequence& sequence);
  void append_token(Sequence& sequence, int64_t row, RequestDelta& delta);
  void decide_end(Sequence& sequence, int32_t token, RequestDelta& delta);
  [[nodiscard]] TokenLogprobs logprobs_of(int64_t row) const;
  void finish(Sequence& sequence, RequestDelta&& delta);
  void fail_sequence(Sequence& sequence, const Cause& cause);
  void fail_sequences(const std::vector<ScheduledTokens>& items, const Cause& cause);
  void abort_request(Request& request);
  void send(const Request& request, RequestDelta&& delta);
  void send_last(Sequence& sequence, RequestDelta&& delta) noexcept;
  void erase_finished_requests();
  void flush() noexcept;

  EngineConfig config_;
  std::unique_ptr<Executor> executor_;
  KvCache cache_;
  Scheduler scheduler_;
  StepBuilder builder_;
  std::unordered_map<int64_t, std::unique_ptr<Request>> requests_;
  std::vector<int64_t> finished_;                  // requests to erase
  std::vector<std::shared_ptr<Channel>> touched_;  // channels with news since the last flush
  std::shared_ptr<MaskExchange> masks_;
  std::vector<MaskReply> replies_;           // just taken
  std::vector<MaskReply> endings_;           // of these, the ones that end their sequence after the step
  bool is_blocked_ = false;                  // the last plan was empty
  std::vector<ScheduledTokens> step_items_;  // of the running step; outlives the plan
  Step* step_ = nullptr;
  int64_t num_unscheduled_ = 0;
  double charged_until_s_ = 0.0;      // when the last step's execution ended; 0: the engine was idle
  double handed_over_until_s_ = 0.0;  // when its outputs were handed over; 0: the engine was idle
  double expert_totals_s_ = 0.0;
  EngineStats stats_;
};

}  // namespace fastllm
