#include "engine/scheduler.h"

#include <algorithm>
#include <tuple>

#include "core/error.h"

namespace fastllm {
namespace {

bool is_before(const Sequence* a, const Sequence* b) {
  const auto key = [](const Sequence* s) { return std::tuple(s->request->priority, s->request->id, s->index); };
  return key(a) < key(b);
}

void insert_sorted(std::vector<Sequence*>& list, Sequence* sequence) {
  list.insert(std::ranges::upper_bound(list, sequence, is_before), sequence);
}

}  // namespace

Scheduler::Scheduler(const EngineConfig& config, KvCache& cache) : config_(config), cache_(cache) {
  const auto num_seqs = static_cast<std::size_t>(config.max_num_seqs);
  running_.reserve(num_seqs);
  plan_.items.reserve(num_seqs);
  plan_.copies.reserve(num_seqs);
}

void Scheduler::reserve_one() {
  // Any running sequence may come back to the waiting list, and that must not fail.
  const std::size_t needed = waiting_.size() + running_.size() + 1;
  if (waiting_.capacity() < needed) waiting_.reserve(std::max(needed, 2 * waiting_.capacity()));
}

void Scheduler::add(Sequence& sequence) {
  reserve_one();
  sequence.state = SequenceState::kWaiting;
  insert_sorted(waiting_, &sequence);
}

void Scheduler::fork(const Sequence& parent, Sequence& child) {
  reserve_one();
  if (std::cmp_greater_equal(running_.size(), config_.max_num_seqs)) {
    child.state = SequenceState::kWaiting;
    insert_sorted(waiting_, &child);
    return;
  }
  const int64_t prompt_len = child.size();
  const auto shared = static_cast<std::size_t>(cache_.pages_for(prompt_len));
  child.pages.assign(parent.pages.begin(), parent.pages.begin() + static_cast<std::ptrdiff_t>(shared));
  for (const int32_t page : child.pages) cache_.retain(page);
  child.num_computed = prompt_len - 1;
  child.num_published = std::min(parent.num_published, child.num_computed / config_.page_size);
  child.state = SequenceState::kRunning;
  insert_sorted(running_, &child);
}

void Scheduler::remove(Sequence& sequence) {
  if (sequence.state == SequenceState::kRunning) std::erase(running_, &sequence);
  if (sequence.state == SequenceState::kWaiting) std::erase(waiting_, &sequence);
  if (blocked_head_ == &sequence) blocked_head_ = nullptr;
  cache_.release_all(sequence.pages);
  sequence.state = SequenceState::kFinished;
}

const StepPlan& Scheduler::schedule() {
  plan_.items.clear();
  plan_.copies.clear();
  tokens_left_ = config_.max_num_batched_tokens;
  rows_left_ = config_.max_logit_rows;
  const int64_t preemptions_before = num_preemptions_;

  // The list shrinks from its end while this walks it from its front.
  for (std::size_t i = 0; i < running_.size(); ++i) {
    Sequence& sequence = *running_[i];
    if (sequence.num_remaining() == 1 && !sequence.is_late && make_room_for_next_token(sequence)) take(sequence, 1);
  }
  for (Sequence* sequence : running_) {
    if (sequence->num_remaining() > 1) take(*sequence, chunk_size(*sequence));
  }
  // Who was just sent away would only take the pages back that were freed for others.
  const bool is_settled = num_preemptions_ == preemptions_before || plan_.items.empty();
  if (running_.empty()) is_batch_closed_ = false;
  const bool may_admit = is_settled && !is_batch_closed_;
  while (may_admit && !waiting_.empty() && tokens_left_ > 0 && rows_left_ > 0 &&
         std::cmp_less(running_.size(), config_.max_num_seqs)) {
    Sequence& head = *waiting_.front();
    if (!try_admit(head)) break;
    take(head, chunk_size(head));
  }
  if (config_.static_batching) {
    // Still open while the step's budget alone kept the next one out.
    const bool is_full = std::cmp_greater_equal(running_.size(), config_.max_num_seqs);
    if (is_full || (tokens_left_ > 0 && rows_left_ > 0)) is_batch_closed_ = true;
  }
  FASTLLM_CHECK(!plan_.items.empty() || std::ranges::any_of(running_, &Sequence::is_late) || !has_work(),
                waiting_.size(), " sequences wait and nothing can run");
  return plan_;
}

// The sources of this step's copies are held until its end, but copies run before anything is written: the last reader
// may write into a source.
bool Scheduler::is_writable(int32_t page) const {
  const int64_t num_copies = std::ranges::count(plan_.copies, page, &PageCopy::from);
  return cache_.pool().references(page) == 1 + num_copies && !cache_.pool().is_indexed(page);
}

// A page to write position num_computed into: a new one at a border, a copy of one that others read.
bool Scheduler::make_room_for_next_token(Sequence& sequence) {
  const auto page_idx = static_cast<std::size_t>(sequence.num_computed / config_.page_size);
  const bool is_new = page_idx == sequence.pages.size();
  if (!is_new && is_writable(sequence.pages[page_idx])) return true;
  int32_t page = cache_.allocate();
  while (page < 0) {
    const bool is_self = running_.back() == &sequence;
    preempt_last();
    if (is_self) return false;
    // Perhaps the other reader has just left.
    if (!is_new && is_writable(sequence.pages[page_idx])) return true;
    page = cache_.allocate();
  }
  if (is_new) {
    sequence.pages.push_back(page);
  } else {
    plan_.copies.push_back({sequence.pages[page_idx], page});
    sequence.pages[page_idx] = page;
    sequence.num_published = std::min(sequence.num_published, static_cast<int64_t>(page_idx));
  }
  return true;
}

bool Scheduler::try_admit(Sequence& sequence) {
  const int64_t spare = static_cast<int64_t>(running_.size());
  const int64_t available = cache_.pool().num_available();
  // Looking up a long prompt in every step would cost more than the step.
  if (spare > 0 && blocked_head_ == &sequence && available <= blocked_available_) return false;

  const int64_t query = max_cached_tokens(sequence);
  const int64_t hits =
      cache_.match(sequence.request->cache_salt, sequence.tokens, query / config_.page_size, sequence.pages);
  const int64_t needed = cache_.pages_for(sequence.size()) - hits;
  if (needed + spare > cache_.pool().num_available()) {
    cache_.release_all(sequence.pages);
    blocked_head_ = &sequence;
    blocked_available_ = available;
    return false;
  }
  for (int64_t i = 0; i < needed; ++i) sequence.pages.push_back(cache_.allocate());
  blocked_head_ = nullptr;
  prefix_query_tokens_ += query;
  prefix_hit_tokens_ += hits * config_.page_size;
  sequence.num_published = hits;
  sequence.num_computed = hits * config_.page_size;
  if (sequence.metrics.first_scheduled_s == 0.0) sequence.metrics.num_cached_tokens = sequence.num_computed;
  sequence.state = SequenceState::kRunning;
  waiting_.erase(waiting_.begin());
  insert_sorted(running_, &sequence);
  return true;
}

void Scheduler::preempt_last() {
  Sequence& victim = *running_.back();
  running_.pop_back();
  cache_.release_all(victim.pages);
  victim.num_computed = 0;
  victim.num_published = 0;
  victim.is_late = false;
  victim.state = SequenceState::kWaiting;
  ++victim.metrics.num_preemptions;
  ++num_preemptions_;
  insert_sorted(waiting_, &victim);
}

int64_t Scheduler::chunk_size(const Sequence& sequence) const {
  const int64_t first = sequence.num_computed;
  int64_t count = std::min(sequence.num_remaining(), tokens_left_);
  const RowRange rows = rows_of(sequence, first, count);
  if (rows.num_prompt_rows > rows_left_) {
    count = rows.first_prompt_row + rows_left_ - first;
  } else if (rows.count() > rows_left_) {
    --count;  // without the row that the next token is drawn from
  }
  return count;
}

void Scheduler::take(Sequence& sequence, int64_t count) {
  if (count == 0) return;
  plan_.items.push_back({&sequence, sequence.num_computed, count});
  tokens_left_ -= count;
  rows_left_ -= rows_of(sequence, sequence.num_computed, count).count();
}

void Scheduler::complete() {
  release_copy_sources();
  for (const ScheduledTokens& item : plan_.items) {
    Sequence& s = *item.sequence;
    s.num_computed = item.first + item.count;
    s.is_late = s.awaits_mask && s.num_computed == s.size();
    if (s.is_late) --s.num_computed;
    s.num_published =
        cache_.publish(s.request->cache_salt, s.tokens, s.num_published, s.num_computed / config_.page_size, s.pages);
  }
  plan_.items.clear();
}

void Scheduler::cancel() {
  release_copy_sources();
  plan_.items.clear();
}

void Scheduler::release_copy_sources() {
  for (const PageCopy& copy : plan_.copies) cache_.release(copy.from);
  plan_.copies.clear();
}

void Scheduler::check_integrity() const {
  cache_.check_integrity();
  FASTLLM_CHECK(std::cmp_less_equal(running_.size(), config_.max_num_seqs), running_.size(), " sequences run");
  FASTLLM_CHECK(std::ranges::is_sorted(running_, is_before) && std::ranges::is_sorted(waiting_, is_before),
                "a list is out of order");
  std::vector<int32_t> holders(static_cast<std::size_t>(cache_.pool().num_pages()), 0);
  for (const Sequence* s : running_) {
    FASTLLM_CHECK(s->state == SequenceState::kRunning, "a running sequence has another state");
    FASTLLM_CHECK(s->num_remaining() >= 1, "a running sequence has nothing to compute");
    FASTLLM_CHECK(!s->is_late || (s->awaits_mask && s->num_remaining() == 1), "a sequence rests that could run");
    FASTLLM_CHECK(std::cmp_greater_equal(s->pages.size(), cache_.pages_for(s->num_computed)), "pages are missing");
    FASTLLM_CHECK(s->num_published * config_.page_size <= s->num_computed, "published before it was computed");
    for (const int32_t page : s->pages) ++holders[static_cast<std::size_t>(page)];
  }
  for (const Sequence* s : waiting_) {
    FASTLLM_CHECK(s->state == SequenceState::kWaiting && s->pages.empty() && s->num_computed == 0,
                  "a waiting sequence holds pages");
  }
  for (int32_t page = 0; page < cache_.pool().num_pages(); ++page) {
    FASTLLM_CHECK(cache_.pool().references(page) == holders[static_cast<std::size_t>(page)], "page ", page, " has ",
                  cache_.pool().references(page), " references and ", holders[static_cast<std::size_t>(page)],
                  " holders");
  }
}

}  // namespace fastllm
