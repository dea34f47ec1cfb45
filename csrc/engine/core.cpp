#include "engine/core.h"

#include <algorithm>
#include <cmath>
#include <exception>
#include <new>
#include <utility>

#include "core/error.h"
#include "core/fault.h"

namespace fastllm {
namespace {

bool contains(const std::vector<int32_t>& ids, int32_t id) { return std::ranges::find(ids, id) != ids.end(); }

// Short enough for std::string to hold without allocating: it is used when an allocation has failed.
constexpr const char* kOutOfMemoryText = "out of memory";

// Rows that draw a token, at most one of a sequence, and whose mask was asked for and had not come when the step began.
int64_t num_awaited_masks(const Step& step) {
  int64_t count = 0;
  for (std::size_t r = 0; r < step.rows.size(); ++r) {
    count += step.rows[r].forced_token < 0 && step.owners[r]->awaits_mask ? 1 : 0;
  }
  return count;
}

RequestDelta delta_of(const Sequence& s) {
  RequestDelta delta;
  delta.request_id = s.request->id;
  delta.index = s.index;
  return delta;
}

bool is_empty(const RequestDelta& d) { return d.token_ids.empty() && d.prompt_logprobs.empty(); }

const EngineConfig& checked(const EngineConfig& config) {
  check(config);
  return config;
}

}  // namespace

EngineCore::EngineCore(const EngineConfig& config, std::unique_ptr<Executor> executor)
    : config_(checked(config)),
      executor_(std::move(executor)),
      cache_(config.num_pages, config.page_size, config.enable_prefix_caching, PrefixIndex::random_key()),
      scheduler_(config_, cache_),
      builder_(config_),
      masks_(std::make_shared<MaskExchange>(config.vocab_size)) {
  step_items_.reserve(static_cast<std::size_t>(config.max_num_seqs));
}

void EngineCore::add(std::unique_ptr<Request> request) {
  Request& r = *request;
  try {
    finished_.reserve(requests_.size() + 1);
    scheduler_.reserve_one();
    requests_.try_emplace(r.id).first->second = std::move(request);
  } catch (...) {
    const Cause cause = current_exception_cause();
    for (const std::unique_ptr<Sequence>& s : r.sequences) send_last(*s, error_delta(*s, cause));
    if (r.masks) masks_->tell_end(r.masks->key);
    flush();
    return;
  }
  ++stats_.num_requests;
  ++num_unscheduled_;
  scheduler_.add(*r.sequences.front());
}

void EngineCore::abort(int64_t request_id) {
  const auto found = requests_.find(request_id);
  if (found == requests_.end()) return;
  abort_request(*found->second);
  erase_finished_requests();
  flush();
}

void EngineCore::abort_request(Request& request) {
  for (const std::unique_ptr<Sequence>& s : request.sequences) {
    if (s->state == SequenceState::kFinished) continue;
    RequestDelta delta = delta_of(*s);
    delta.finish_reason = FinishReason::kAbort;
    finish(*s, std::move(delta));
  }
}

bool EngineCore::step() {
  abort_abandoned();
  receive_masks();
  end_by_grammar();
  const bool has_run = scheduler_.has_work() && run_step();
  erase_finished_requests();
  flush();
  if (has_run) {
    read_expert_totals();
    handed_over_until_s_ = monotonic_s();
    stats_.hand_over_s += handed_over_until_s_ - charged_until_s_;
  }
  if (!has_run || !scheduler_.has_work()) charged_until_s_ = handed_over_until_s_ = 0.0;
  return has_run;
}

// A device is asked for them, so not in every step; but before the engine is idle.
void EngineCore::read_expert_totals() noexcept {
  const double now = monotonic_s();
  if (scheduler_.has_work() && now - expert_totals_s_ < 1.0) return;
  expert_totals_s_ = now;
  try {
    stats_.experts = std::make_shared<const ExpertTotals>(executor_->expert_totals());
  } catch (...) {
    // The last figures stay. A device that is gone shows in the next step.
  }
}

bool EngineCore::run_step() {
  // What a part takes begins where the one before ended: no time is lost between them.
  const double begin = handed_over_until_s_ > 0.0 ? handed_over_until_s_ : monotonic_s();
  double charged_until = charged_until_s_ > 0.0 ? charged_until_s_ : begin;
  const StepPlan& plan = scheduler_.schedule();
  is_blocked_ = plan.items.empty();
  if (is_blocked_) return false;
  step_items_.assign(plan.items.begin(), plan.items.end());
  ++stats_.num_steps;
  try {
    mark_scheduled(plan);
    Step& step = builder_.build(plan);
    step_ = &step;
    const double forward_begin = monotonic_s();
    step.sample_begin_s = 0.0;
    step.read_bytes = 0;
    step.before_sample = nullptr;
    if (const int64_t num_awaited = num_awaited_masks(step); num_awaited > 0) {
      step.before_sample = [this, num_awaited](double forward_s) { bring_masks(num_awaited, forward_s); };
    }
    executor_->execute(step);
    const double end = monotonic_s();
    const double forward_end = step.sample_begin_s > 0.0 ? step.sample_begin_s : end;
    stats_.schedule_s += forward_begin - begin;
    stats_.forward_s += forward_end - forward_begin;
    stats_.sample_s += end - forward_end;
    stats_.read_bytes += step.read_bytes;
    charged_until_s_ = end;
    charge(step_items_, end - charged_until);
    charged_until = end;
    scheduler_.complete();
    stats_.num_failed_steps_in_a_row = 0;
  } catch (...) {
    const Cause cause = current_exception_cause();
    charged_until_s_ = monotonic_s();
    charge(step_items_, charged_until_s_ - charged_until);
    scheduler_.cancel();
    ++stats_.num_failed_steps;
    ++stats_.num_failed_steps_in_a_row;
    fail_sequences(step_items_, cause);
    return true;
  }
  stats_.last_step_s = monotonic_s();

  int64_t row = 0;
  for (const ScheduledTokens& item : step_items_) {
    Sequence& s = *item.sequence;
    const int64_t row_begin = row;
    while (row < step_->num_rows() && step_->owners[static_cast<std::size_t>(row)] == &s) ++row;
    stats_.num_prompt_tokens += std::clamp<int64_t>(s.request->prompt_len() - item.first, 0, item.count);
    try {
      process(item, row_begin, row);
    } catch (...) {
      fail_sequence(s, current_exception_cause());
    }
  }
  end_by_grammar();
  return true;
}

Sequence* EngineCore::find_awaiting_mask(int64_t request_id, int32_t index) {
  const auto found = requests_.find(request_id);
  if (found == requests_.end()) return nullptr;
  const auto& sequences = found->second->sequences;
  if (index < 0 || std::cmp_greater_equal(index, sequences.size())) return nullptr;
  Sequence* s = sequences[static_cast<std::size_t>(index)].get();
  return s->awaits_mask && s->state != SequenceState::kFinished ? s : nullptr;
}

void EngineCore::receive_masks() {
  masks_->take(replies_);
  for (MaskReply& reply : replies_) {
    Sequence* s = find_awaiting_mask(reply.request_id, reply.index);
    if (s == nullptr) continue;
    if (reply.mask.empty()) {
      endings_.push_back(std::move(reply));
      continue;
    }
    s->mask.swap(reply.mask);
    stats_.num_late_masks += s->is_late ? 1 : 0;
    s->awaits_mask = s->is_late = false;
  }
}

// Between forward and sample. Rows whose mask is not there draw nothing.
void EngineCore::bring_masks(int64_t num_awaited, double forward_s) {
  Step& step = *step_;
  // If nobody else is in this step, waiting costs less than computing it again, as long as that would take.
  if (num_awaited == step.view.num_seqs) masks_->wait_for(static_cast<std::size_t>(num_awaited), forward_s);
  receive_masks();
  for (std::size_t r = 0; r < step.rows.size(); ++r) {
    SampleRow& row = step.rows[r];
    if (row.forced_token >= 0) continue;
    row.mask = step.owners[r]->mask;
    if (!step.owners[r]->awaits_mask) continue;
    row.forced_token = 0;
    row.wants_logprob = false;
    row.num_top = 0;
  }
}

// What the grammar has to say instead of a mask: it is complete, or it cannot go on.
void EngineCore::end_by_grammar() {
  for (const MaskReply& reply : endings_) {
    Sequence* s = find_awaiting_mask(reply.request_id, reply.index);
    if (s == nullptr) continue;
    if (!reply.error.empty()) {
      fail_sequence(*s, {ErrorKind::kInvalidRequest, reply.error});
      continue;
    }
    try {
      RequestDelta delta = delta_of(*s);
      delta.finish_reason = FinishReason::kStop;
      if (s->text) delta.text = s->text->finish().text;
      finish(*s, std::move(delta));
    } catch (...) {
      fail_sequence(*s, current_exception_cause());
    }
  }
  endings_.clear();
}

// The engine's time from the end of one step's execution to that of the next is paid by the sequences of the latter, in
// proportion to the tokens that they computed in it; what follows the last step before the engine is idle is paid by
// nobody. Pages are paid for the same time by those that hold them: a shared page in equal parts, whoever computed.
void EngineCore::charge(const std::vector<ScheduledTokens>& items, double seconds) {
  int64_t num_tokens = 0;
  for (const ScheduledTokens& item : items) num_tokens += item.count;
  for (const ScheduledTokens& item : items) {
    item.sequence->metrics.device_s += seconds * static_cast<double>(item.count) / static_cast<double>(num_tokens);
  }
  if (num_tokens > 0) stats_.charged_s += seconds;
  const PagePool& pool = cache_.pool();
  for (Sequence* s : scheduler_.running()) {
    double held = 0.0;
    for (const int32_t page : s->pages) held += 1.0 / static_cast<double>(pool.references(page));
    s->metrics.kv_page_s += held * seconds;
    stats_.kv_page_s += held * seconds;
  }
}

void EngineCore::mark_scheduled(const StepPlan& plan) {
  const double now = monotonic_s();
  for (const ScheduledTokens& item : plan.items) {
    Sequence& s = *item.sequence;
    if (s.metrics.first_scheduled_s == 0.0) s.metrics.first_scheduled_s = now;
    if (!std::exchange(s.request->was_scheduled, true)) --num_unscheduled_;
  }
}

// A consumer that let its channel go will never read: its requests end here, waiting ones too.
void EngineCore::abort_abandoned() {
  bool found = false;
  const auto abort_those_of = [&](const std::vector<Sequence*>& list) {
    for (std::size_t i = 0; i < list.size();) {
      Request& request = *list[i]->request;
      if (!request.channel.expired()) {
        ++i;
        continue;
      }
      abort_request(request);  // takes all its sequences out of both lists
      found = true;
      i = 0;
    }
  };
  abort_those_of(scheduler_.running());
  abort_those_of(scheduler_.waiting());
  if (found) erase_finished_requests();
}

void EngineCore::process(const ScheduledTokens& item, int64_t row_begin, int64_t row_end) {
  Sequence& s = *item.sequence;
  if (s.request->pooling != Pooling::kNone) {
    s.num_pooled = std::max(s.num_pooled, item.first + item.count);
    if (s.num_remaining() == 0) finish_embedding(s);
    return;
  }
  for (int64_t row = row_begin; row < row_end; ++row) {
    if (step_->results[static_cast<std::size_t>(row)].is_finite) continue;
    ++stats_.num_nonfinite_rows;
    cache_.forget(s.pages);  // its K/V may hold the NaN that came out here
    fail_sequence(s, {ErrorKind::kInternal,
                      "the model gave no usable logits for this sequence (NaN, infinity, or every token banned)"});
    return;
  }
  const int64_t num_prompt_rows = rows_of(s, item.first, item.count).num_prompt_rows;
  RequestDelta delta = delta_of(s);
  for (int64_t i = 0; i < num_prompt_rows; ++i) delta.prompt_logprobs.push_back(logprobs_of(row_begin + i));
  s.num_prompt_logprobs += num_prompt_rows;
  if (row_begin + num_prompt_rows < row_end) {
    if (!s.is_late) {
      fork_children(s);
      append_token(s, row_end - 1, delta);
    }
  }
  if (delta.finish_reason != FinishReason::kNone) {
    finish(s, std::move(delta));
  } else if (!is_empty(delta)) {
    delta.metrics = s.metrics;
    send(*s.request, std::move(delta));
  }
}

void EngineCore::finish_embedding(Sequence& s) {
  const double num_summed = s.request->pooling == Pooling::kMean ? static_cast<double>(s.size()) : 1.0;
  RequestDelta delta = delta_of(s);
  delta.embedding.reserve(s.pooled.size());
  for (const double sum : s.pooled) delta.embedding.push_back(static_cast<float>(sum / num_summed));
  if (!std::ranges::all_of(delta.embedding, [](float x) { return std::isfinite(x); })) {
    ++stats_.num_nonfinite_rows;
    cache_.forget(s.pages);
    fail_sequence(s, {ErrorKind::kInternal, "the model gave no usable embedding for this prompt (NaN or infinity)"});
    return;
  }
  s.metrics.last_token_s = monotonic_s();
  delta.finish_reason = FinishReason::kStop;
  finish(s, std::move(delta));
}

void EngineCore::fork_children(const Sequence& parent) {
  for (const std::unique_ptr<Sequence>& child : parent.request->sequences) {
    if (child->state != SequenceState::kUnborn) continue;
    try {
      start(*child, config_);
      child->metrics.num_cached_tokens = parent.metrics.num_cached_tokens;
      scheduler_.fork(parent, *child);
    } catch (...) {
      fail_sequence(*child, current_exception_cause());
    }
  }
}

void EngineCore::append_token(Sequence& s, int64_t row, RequestDelta& delta) {
  const int32_t token = step_->results[static_cast<std::size_t>(row)].token;
  FASTLLM_CHECK(token >= 0 && token < config_.vocab_size, "the sampler drew token ", token);
  if (step_->rows[static_cast<std::size_t>(row)].wants_logprob) delta.logprobs.push_back(logprobs_of(row));
  delta.token_ids.push_back(token);
  s.tokens.push_back(token);
  s.sampling.add(s.request->rules, token);
  const double now = monotonic_s();
  if (s.metrics.first_token_s == 0.0) s.metrics.first_token_s = now;
  s.metrics.last_token_s = now;
  s.metrics.num_generated_tokens = num_generated(s);
  ++stats_.num_generated_tokens;
  decide_end(s, token, delta);
  if (!s.request->masks || delta.finish_reason != FinishReason::kNone) return;
  masks_->ask({.key = s.request->masks->key, .request_id = s.request->id, .index = s.index, .token = token});
  s.awaits_mask = true;
  ++stats_.num_masks;
}

void EngineCore::decide_end(Sequence& s, int32_t token, RequestDelta& delta) {
  const Request& request = *s.request;
  const bool is_stop_id = contains(request.rules.stop_ids, token);
  const bool is_end = is_stop_id || contains(request.rules.eos_ids, token);
  if (is_end) {
    delta.finish_reason = FinishReason::kStop;
    if (is_stop_id) delta.stop_reason = token;
  }
  const auto add_text = [&](const OutputText::Piece& piece) {
    delta.text += piece.text;
    if (!piece.stopped) return;
    delta.finish_reason = FinishReason::kStop;
    delta.stop_reason = request.params.stop[static_cast<std::size_t>(piece.stop_index)];
  };
  if (s.awaits_stop_strings && num_generated(s) > request.rules.min_tokens) start_stop_strings(s, config_);
  if (s.text && (!is_end || request.params.include_stop_str_in_output)) {
    const OutputText::Piece piece = s.text->push(token);
    add_text(piece);
    if (piece.stopped) return;  // what follows the stop string is never shown
  }
  if (!is_end && num_generated(s) >= request.max_tokens) delta.finish_reason = FinishReason::kLength;
  if (s.text && delta.finish_reason != FinishReason::kNone) add_text(s.text->finish());
}

TokenLogprobs EngineCore::logprobs_of(int64_t row) const {
  const SampleRow& wanted = step_->rows[static_cast<std::size_t>(row)];
  const SampleResult& result = step_->results[static_cast<std::size_t>(row)];
  TokenLogprobs entry{.token = result.token, .logprob = result.logprob, .rank = result.rank, .top = {}};
  entry.top.reserve(static_cast<std::size_t>(wanted.num_top));
  for (int32_t i = 0; i < wanted.num_top; ++i) entry.top.push_back({wanted.top_tokens[i], wanted.top_logprobs[i]});
  return entry;
}

RequestDelta EngineCore::error_delta(const Sequence& s, const Cause& cause) noexcept {
  RequestDelta delta = delta_of(s);
  delta.finish_reason = FinishReason::kError;
  delta.error_kind = cause.kind;
  delta.metrics = s.metrics;
  try {
    delta.error_message = cause.message;
  } catch (...) {
    delta.error_message = kOutOfMemoryText;
  }
  return delta;
}

void EngineCore::finish(Sequence& s, RequestDelta&& delta) {
  scheduler_.remove(s);
  s.text.reset();
  delta.metrics = s.metrics;
  if (delta.finish_reason == FinishReason::kAbort) stats_.aborted_s += s.metrics.device_s;
  if (--s.request->num_unfinished == 0) finished_.push_back(s.request->id);
  send_last(s, std::move(delta));
}

void EngineCore::fail_sequence(Sequence& s, const Cause& cause) {
  if (s.state == SequenceState::kFinished) return;
  finish(s, error_delta(s, cause));
  // Those that waited for this one to read the prompt would wait for ever.
  if (s.index > 0) return;
  for (const std::unique_ptr<Sequence>& child : s.request->sequences) {
    if (child->state == SequenceState::kUnborn) fail_sequence(*child, cause);
  }
}

void EngineCore::fail_sequences(const std::vector<ScheduledTokens>& items, const Cause& cause) {
  for (const ScheduledTokens& item : items) fail_sequence(*item.sequence, cause);
}

void EngineCore::fail_all(ErrorKind kind, const std::string& message) {
  const Cause cause{kind, message};
  for (const auto& [id, request] : requests_) {
    for (const std::unique_ptr<Sequence>& s : request->sequences) fail_sequence(*s, cause);
  }
  erase_finished_requests();
  flush();
}

void EngineCore::send(const Request& request, RequestDelta&& delta) {
  FASTLLM_FAULT_POINT(kQueue, kInternal, "output queue");
  const std::shared_ptr<Channel> channel = request.channel.lock();
  if (channel == nullptr) return;
  if (std::ranges::find(touched_, channel) == touched_.end()) touched_.push_back(channel);
  channel->add(std::move(delta));
}

void EngineCore::send_last(Sequence& s, RequestDelta&& delta) noexcept {
  try {
    send(*s.request, std::move(delta));
    return;
  } catch (...) {
    try {
      send(*s.request, error_delta(s, current_exception_cause()));
      return;
    } catch (...) {
      // Not even the error could be stored; below, the channel itself says so.
    }
  }
  if (const std::shared_ptr<Channel> channel = s.request->channel.lock()) {
    channel->mark_lost();
    channel->flush();
  }
}

void EngineCore::erase_finished_requests() {
  for (const int64_t id : finished_) {
    const auto found = requests_.find(id);
    if (found == requests_.end()) continue;
    if (!found->second->was_scheduled) --num_unscheduled_;
    if (found->second->masks) masks_->tell_end(found->second->masks->key);
    ++stats_.num_requests_finished;
    requests_.erase(found);
  }
  finished_.clear();
}

void EngineCore::flush() noexcept {
  masks_->flush();
  for (const std::shared_ptr<Channel>& channel : touched_) channel->flush();
  touched_.clear();
}

EngineCore::Cause EngineCore::current_exception_cause() noexcept {
  try {
    try {
      throw;
    } catch (const Error& e) {
      return {e.kind(), e.what()};
    } catch (const std::bad_alloc&) {
      return {ErrorKind::kOutOfMemory, kOutOfMemoryText};
    } catch (const std::exception& e) {
      return {ErrorKind::kInternal, e.what()};
    } catch (...) {
      return {ErrorKind::kInternal, "an unknown exception ended a step"};
    }
  } catch (...) {  // there was no memory for the text
    return {ErrorKind::kOutOfMemory, kOutOfMemoryText};
  }
}

EngineStats EngineCore::stats() const {
  EngineStats stats = stats_;
  const PagePool& pool = cache_.pool();
  stats.num_running = static_cast<int64_t>(scheduler_.running().size());
  stats.num_waiting = static_cast<int64_t>(scheduler_.waiting().size());
  stats.num_pages = pool.num_pages();
  stats.num_pages_free = pool.num_free();
  stats.num_pages_cached = pool.num_cached();
  stats.num_pages_referenced = pool.num_referenced();
  stats.num_preemptions = scheduler_.num_preemptions();
  stats.prefix_query_tokens = scheduler_.prefix_query_tokens();
  stats.prefix_hit_tokens = scheduler_.prefix_hit_tokens();
  return stats;
}

void EngineCore::check_integrity() const {
  scheduler_.check_integrity();
  std::size_t num_alive = 0;
  int64_t num_unscheduled = 0;
  for (const auto& [id, request] : requests_) {
    std::size_t num_unfinished = 0;
    for (const std::unique_ptr<Sequence>& s : request->sequences) {
      if (s->state == SequenceState::kFinished) continue;
      ++num_unfinished;
      num_alive += s->state == SequenceState::kUnborn ? 0 : 1;
      const bool waits_for_first = s->state == SequenceState::kUnborn;
      FASTLLM_CHECK(!waits_for_first || request->sequences[0]->state != SequenceState::kFinished,
                    "a sequence of request ", id, " waits for one that has finished");
    }
    FASTLLM_CHECK(num_unfinished > 0, "request ", id, " has finished and is still here");
    FASTLLM_CHECK(std::cmp_equal(num_unfinished, request->num_unfinished), "request ", id, " miscounts its sequences");
    num_unscheduled += request->was_scheduled ? 0 : 1;
  }
  FASTLLM_CHECK(num_alive == scheduler_.running().size() + scheduler_.waiting().size(), num_alive,
                " sequences are alive, the scheduler knows ", scheduler_.running().size(), " + ",
                scheduler_.waiting().size());
  FASTLLM_CHECK(num_unscheduled == num_unscheduled_, "unscheduled requests are miscounted");
}

}  // namespace fastllm
