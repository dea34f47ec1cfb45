#include "engine/mask_exchange.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <iterator>
#include <mutex>
#include <utility>

#include "core/error.h"

namespace fastllm {

void check_mask(const std::vector<uint32_t>& mask, int64_t vocab_size) {
  const int64_t num_words = (vocab_size + 31) / 32;
  if (std::cmp_equal(mask.size(), num_words)) return;
  fail(ErrorKind::kInvalidRequest, "a mask has ", mask.size(), " words of 32 bits, expected ", num_words);
}

struct MaskExchange::State {
  const pid_t process = getpid();
  int64_t vocab_size = 0;
  mutable std::mutex mutex;
  std::condition_variable has_tasks;
  std::condition_variable has_replies;
  std::vector<MaskTask> tasks;
  std::vector<MaskReply> replies;
  bool is_flushed = false;
  bool is_closed = false;
};

MaskExchange::MaskExchange(int64_t vocab_size) : state_(std::make_unique<State>()) { state_->vocab_size = vocab_size; }

MaskExchange::~MaskExchange() {
  if (state_->process != getpid()) static_cast<void>(state_.release());
}

void MaskExchange::ask(const MaskTask& task) {
  const std::scoped_lock lock(state_->mutex);
  state_->tasks.push_back(task);
}

void MaskExchange::tell_end(int64_t key) noexcept {
  try {
    ask({.key = key});
  } catch (...) {
    // The worker keeps a grammar that nobody uses, until the engine closes.
  }
}

void MaskExchange::flush() noexcept {
  {
    const std::scoped_lock lock(state_->mutex);
    if (state_->tasks.empty()) return;
    state_->is_flushed = true;
  }
  state_->has_tasks.notify_all();
}

void MaskExchange::take(std::vector<MaskReply>& replies) {
  replies.clear();
  const std::scoped_lock lock(state_->mutex);
  state_->replies.swap(replies);
}

void MaskExchange::wait_for(std::size_t count, double timeout_s) {
  if (timeout_s <= 0.0) return;
  std::unique_lock lock(state_->mutex);
  const auto is_done = [&] { return state_->replies.size() >= count; };
  state_->has_replies.wait_for(lock, std::chrono::duration<double>(timeout_s), is_done);
}

std::vector<MaskTask> MaskExchange::poll(double timeout_s) {
  if (state_->process != getpid()) fail(ErrorKind::kEngineClosed, "this engine was made before fork()");
  const double wait_s = timeout_s > 0.0 ? std::min(timeout_s, 1e6) : 0.0;  // also for NaN
  std::unique_lock lock(state_->mutex);
  const auto is_done = [this] { return state_->is_flushed || state_->is_closed; };
  // Not even with a timeout of 0: the thread would sleep, if only for a moment.
  if (wait_s > 0.0) state_->has_tasks.wait_for(lock, std::chrono::duration<double>(wait_s), is_done);
  state_->is_flushed = false;
  return std::exchange(state_->tasks, {});
}

void MaskExchange::reply(std::vector<MaskReply> replies) {
  for (const MaskReply& reply : replies) {
    if (!reply.mask.empty()) check_mask(reply.mask, state_->vocab_size);
  }
  {
    const std::scoped_lock lock(state_->mutex);
    if (state_->is_closed) return;
    std::ranges::move(replies, std::back_inserter(state_->replies));
  }
  state_->has_replies.notify_all();
}

bool MaskExchange::has_replies() const {
  const std::scoped_lock lock(state_->mutex);
  return !state_->replies.empty();
}

void MaskExchange::close() noexcept {
  {
    const std::scoped_lock lock(state_->mutex);
    state_->is_closed = true;
  }
  state_->has_tasks.notify_all();
}

}  // namespace fastllm
