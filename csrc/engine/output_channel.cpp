#include "engine/output_channel.h"

#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <iterator>
#include <map>
#include <mutex>
#include <new>
#include <utility>

namespace fastllm {
namespace {

template <class T>
void append(std::vector<T>& to, std::vector<T>&& from) {
  to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}

}  // namespace

struct Channel::State {
  const pid_t process = getpid();
  std::mutex mutex;
  std::condition_variable has_news;
  std::vector<RequestDelta> pending;
  std::map<std::pair<int64_t, int32_t>, std::size_t> places;  // of (request, index) in pending
  bool is_ready = false;                                      // flush() came after an add()
  bool is_closed = false;
  bool is_lossy = false;
};

Channel::Channel() : state_(std::make_unique<State>()) {}

Channel::~Channel() {
  if (state_->process != getpid()) static_cast<void>(state_.release());
}

void Channel::check_process() const {
  if (state_->process != getpid()) {
    fail(ErrorKind::kEngineClosed, "this channel was made before fork(); make a new engine in the child process");
  }
}

void Channel::add(RequestDelta&& delta) {
  const std::scoped_lock lock(state_->mutex);
  std::vector<RequestDelta>& pending = state_->pending;
  const auto [place, is_new] = state_->places.try_emplace({delta.request_id, delta.index}, pending.size());
  if (is_new) {
    try {
      pending.push_back(std::move(delta));
    } catch (...) {
      state_->places.erase(place);
      throw;
    }
    return;
  }
  RequestDelta& merged = pending[place->second];
  append(merged.token_ids, std::move(delta.token_ids));
  append(merged.logprobs, std::move(delta.logprobs));
  append(merged.prompt_logprobs, std::move(delta.prompt_logprobs));
  merged.text += delta.text;
  merged.embedding = std::move(delta.embedding);
  merged.finish_reason = delta.finish_reason;
  merged.stop_reason = std::move(delta.stop_reason);
  merged.error_kind = delta.error_kind;
  merged.error_message = std::move(delta.error_message);
  merged.metrics = delta.metrics;
}

void Channel::flush() noexcept {
  {
    const std::scoped_lock lock(state_->mutex);
    if (state_->pending.empty() && !state_->is_lossy) return;
    state_->is_ready = true;
  }
  state_->has_news.notify_all();
}

void Channel::close() noexcept {
  {
    const std::scoped_lock lock(state_->mutex);
    state_->is_closed = true;
  }
  state_->has_news.notify_all();
}

void Channel::mark_lost() noexcept {
  const std::scoped_lock lock(state_->mutex);
  state_->is_lossy = true;
}

std::vector<RequestDelta> Channel::poll(double timeout_s) {
  check_process();
  // Also for NaN and for what a clock cannot count.
  const double wait_s = timeout_s > 0.0 ? std::min(timeout_s, 1e6) : 0.0;
  std::unique_lock lock(state_->mutex);
  const auto is_done = [this] { return state_->is_ready || state_->is_closed || state_->is_lossy; };
  if (wait_s > 0.0) state_->has_news.wait_for(lock, std::chrono::duration<double>(wait_s), is_done);
  if (state_->is_lossy) {
    state_->is_lossy = false;
    fail(ErrorKind::kOutOfMemory, "memory ran out while results were stored; some requests have ended without a word");
  }
  state_->is_ready = false;
  state_->places.clear();
  return std::exchange(state_->pending, {});
}

bool Channel::is_closed() const {
  check_process();
  const std::scoped_lock lock(state_->mutex);
  return state_->is_closed;
}

}  // namespace fastllm
