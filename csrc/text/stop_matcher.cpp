#include "text/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace fastllm {
namespace {

std::vector<uint32_t> fallbacks(const std::string& text) {
  std::vector<uint32_t> fallback(text.size(), 0);
  uint32_t length = 0;
  for (std::size_t i = 1; i < text.size(); ++i) {
    while (length > 0 && text[i] != text[length]) length = fallback[length - 1];
    if (text[i] == text[length]) ++length;
    fallback[i] = length;
  }
  return fallback;
}

}  // namespace

StopMatcher::StopMatcher(std::vector<std::string> stops, bool keeps_stop) : keeps_stop_(keeps_stop) {
  stops_.reserve(stops.size());
  for (std::string& text : stops) {
    std::vector<uint32_t> fallback = fallbacks(text);
    stops_.push_back({std::move(text), std::move(fallback)});
  }
}

int StopMatcher::feed(std::string_view text, std::string& out) {
  if (stopped_by_ >= 0) return stopped_by_;
  for (std::size_t i = 0; i < text.size(); ++i) {
    stopped_by_ = step(text[i]);
    if (stopped_by_ < 0) continue;
    pending_ += text.substr(0, i + 1);
    const std::size_t hidden = keeps_stop_ ? 0 : stops_[static_cast<std::size_t>(stopped_by_)].text.size();
    out += std::string_view(pending_).substr(0, pending_.size() - hidden);
    pending_.clear();
    return stopped_by_;
  }
  pending_ += text;
  const std::size_t shown = pending_.size() - held_back();
  out += std::string_view(pending_).substr(0, shown);
  pending_.erase(0, shown);
  return -1;
}

void StopMatcher::finish(std::string& out) {
  out += pending_;
  pending_.clear();
}

int StopMatcher::step(char byte) {
  int found = -1;
  std::size_t longest = 0;
  for (std::size_t i = 0; i < stops_.size(); ++i) {
    Stop& stop = stops_[i];
    if (stop.text.empty()) continue;
    // matched < size here: after a full match nothing is read any more.
    while (stop.matched > 0 && stop.text[stop.matched] != byte) stop.matched = stop.fallback[stop.matched - 1];
    if (stop.text[stop.matched] == byte) ++stop.matched;
    if (stop.matched == stop.text.size() && stop.matched > longest) {
      longest = stop.matched;
      found = static_cast<int>(i);
    }
  }
  return found;
}

std::size_t StopMatcher::held_back() const {
  std::size_t longest = 0;
  for (const Stop& stop : stops_) longest = std::max(longest, stop.matched);
  return longest;
}

}  // namespace fastllm
