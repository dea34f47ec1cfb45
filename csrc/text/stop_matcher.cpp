#include "text/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace fastllm {

StopMatcher::StopMatcher(std::vector<std::string> stops, bool keeps_stop)
    : stops_(std::move(stops)), keeps_stop_(keeps_stop) {}

int StopMatcher::feed(std::string_view text, std::string& out) {
  // pending_ held no complete stop string before, so a match ends inside `text`.
  const std::size_t old_size = pending_.size();
  pending_ += text;
  std::size_t best_end = std::string::npos;
  std::size_t best_begin = 0;
  int best = -1;
  for (std::size_t i = 0; i < stops_.size(); ++i) {
    const std::string& stop = stops_[i];
    if (stop.empty()) continue;
    const std::size_t from = old_size >= stop.size() ? old_size - stop.size() + 1 : 0;
    const std::size_t begin = pending_.find(stop, from);
    if (begin == std::string::npos) continue;
    const std::size_t end = begin + stop.size();
    if (best < 0 || end < best_end || (end == best_end && begin < best_begin)) {
      best = static_cast<int>(i);
      best_end = end;
      best_begin = begin;
    }
  }
  if (best >= 0) {
    out += std::string_view(pending_).substr(0, keeps_stop_ ? best_end : best_begin);
    pending_.clear();
    return best;
  }
  const std::size_t shown = pending_.size() - held_back();
  out += std::string_view(pending_).substr(0, shown);
  pending_.erase(0, shown);
  return -1;
}

void StopMatcher::finish(std::string& out) {
  out += pending_;
  pending_.clear();
}

// Length of the longest end of pending_ that is a beginning of a stop string.
std::size_t StopMatcher::held_back() const {
  std::size_t longest = 0;
  for (const std::string& stop : stops_) {
    if (stop.empty()) continue;
    const std::size_t limit = std::min(stop.size() - 1, pending_.size());
    for (std::size_t length = limit; length > longest; --length) {
      if (pending_.compare(pending_.size() - length, length, stop, 0, length) == 0) {
        longest = length;
        break;
      }
    }
  }
  return longest;
}

}  // namespace fastllm
