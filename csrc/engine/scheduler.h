// Who computes which tokens in the next step. Knows sequences and pages, no model, no text, no time: a pure function of
// the calls made so far.
//
// Order everywhere: priority (lower first), then submission, then index in the request. A step takes
//   1. every running sequence that decodes (one token) and does not rest (Sequence::is_late), best first. If one needs
//      a page and there is none, the worst running sequence gives up its pages and waits to be recomputed (it may be
//      that one itself);
//   2. running sequences that still read their prompt, as many tokens as the budgets of tokens and logit rows leave;
//   3. waiting sequences, strictly in order: the head is admitted when pages for all its tokens are there (so a prompt
//      never stops halfway), with one page kept for each running sequence, or nothing behind it is looked at.
// Progress: the plan is empty only while sequences rest. If nothing runs, every page is available, and a sequence that
// could not fit was refused at submission; so the head is admitted. FCFS: whoever waits is overtaken only by better
// priorities.
// With static_batching the third is closed from the moment when the batch is full, or nobody waits, until all of it has
// ended. Sequences that have ended leave the batch and cost nothing more.
// Waiting sequences hold no pages. Nothing here allocates after a sequence was added, so no step can run out of memory.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/config.h"
#include "engine/request.h"
#include "kv/kv_cache.h"

namespace fastllm {

struct ScheduledTokens {
  Sequence* sequence = nullptr;
  int64_t first = 0;  // position
  int64_t count = 0;
};

struct PageCopy {
  int32_t from = 0;
  int32_t to = 0;
};

struct StepPlan {
  std::vector<ScheduledTokens> items;
  std::vector<PageCopy> copies;  // sources stay referenced until the step has ended
};

class Scheduler {
 public:
  Scheduler(const EngineConfig& config, KvCache& cache);

  // Makes sure that the next add() cannot fail.
  void reserve_one();
  // A new sequence with tokens and no pages.
  void add(Sequence& sequence);
  // Starts `child` with the K/V that `parent` has of their common prompt, but for the last token: that one is computed
  // again to draw another first token. Without a free seat the child waits like a new sequence.
  void fork(const Sequence& parent, Sequence& child);
  // Takes a sequence out, in any state, and returns its pages. Idempotent.
  void remove(Sequence& sequence);

  // The next step; empty if there is nothing to do. To be ended by complete() or cancel().
  const StepPlan& schedule();
  // The step's K/V is valid: counts it and publishes full pages.
  void complete();
  // It is not. The caller removes the sequences of the step.
  void cancel();

  [[nodiscard]] const std::vector<Sequence*>& running() const { return running_; }
  [[nodiscard]] const std::vector<Sequence*>& waiting() const { return waiting_; }
  [[nodiscard]] bool has_work() const { return !running_.empty() || !waiting_.empty(); }
  [[nodiscard]] int64_t num_preemptions() const { return num_preemptions_; }
  [[nodiscard]] int64_t prefix_query_tokens() const { return prefix_query_tokens_; }
  [[nodiscard]] int64_t prefix_hit_tokens() const { return prefix_hit_tokens_; }

  // Throws kInternal if states, orders, page counts or references disagree. For tests, between steps.
  void check_integrity() const;

 private:
  bool make_room_for_next_token(Sequence& sequence);
  bool try_admit(Sequence& sequence);
  void preempt_last();
  void take(Sequence& sequence, int64_t count);
  [[nodiscard]] int64_t chunk_size(const Sequence& sequence) const;
  void release_copy_sources();
  [[nodiscard]] bool is_writable(int32_t page) const;

  const EngineConfig& config_;
  KvCache& cache_;
  std::vector<Sequence*> running_;  // best first; at most max_num_seqs
  std::vector<Sequence*> waiting_;  // best first
  StepPlan plan_;
  int64_t tokens_left_ = 0;  // budgets of the step that is being planned
  int64_t rows_left_ = 0;
  const Sequence* blocked_head_ = nullptr;  // did not fit when this many pages were available
  int64_t blocked_available_ = 0;
  bool is_batch_closed_ = false;  // static batching: nobody joins those that run
  int64_t num_preemptions_ = 0;
  int64_t prefix_query_tokens_ = 0;
  int64_t prefix_hit_tokens_ = 0;
};

}  // namespace fastllm
