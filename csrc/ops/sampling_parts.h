// What the definition of `sample` (sampling_algorithm.cpp) and its shortcuts (sampling_shortcuts.cpp) share.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "ops/sampling_algorithm.h"

namespace fastllm::sampling {

using Candidate = SampleScratch::Candidate;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline bool comes_before(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

// The last candidate kept. The initial value keeps everything above -infinity.
struct Cutoff {
  float logit = -kInfinity;
  int32_t token = -1;
  [[nodiscard]] bool keeps(float x, int32_t id) const { return x > logit || (x == logit && id <= token); }
  void tighten(const Candidate& last) {
    if (keeps(last.logit, last.token)) *this = {last.logit, last.token};
  }
};

// Probabilities of the candidates, up to a factor.
struct Weigher {
  double largest;
  double temperature;
  [[nodiscard]] double exponent(float logit) const { return (static_cast<double>(logit) - largest) / temperature; }
  [[nodiscard]] double weight(float logit) const { return std::exp(exponent(logit)); }
};

// The last candidate of the shortest prefix whose weights reach a target, and what the prefix had left to reach before
// it: 0 < missing <= its weight, but for rounding.
struct Border {
  Candidate last;
  double missing;
};
Border find_mass(std::span<Candidate> candidates, double target);

// Finds the first k in candidate order, themselves in no order.
class TopBuffer {
 public:
  TopBuffer(std::span<Candidate> buffer, std::size_t k)
      : buffer_(buffer.first(std::min(buffer.size(), std::max<std::size_t>(2 * k, 64)))), k_(k) {}

  // Ids must come ascending: a later equal logit never displaces.
  void add(int32_t token, float logit) {
    if (is_full_ && logit <= worst_) return;
    if (count_ == buffer_.size()) {
      cut();
      if (logit <= worst_) return;
    }
    buffer_[count_++] = {0.0, logit, token};
  }
  // A logit at or below this cannot be among the first k.
  [[nodiscard]] float worst() const { return is_full_ ? worst_ : -kInfinity; }
  [[nodiscard]] std::span<Candidate> finish() {
    if (count_ > k_) cut();
    return buffer_.first(count_);
  }

 private:
  // Cuts the buffer back to the k best, each time that it is full: the cost is O(V) with a constant that falls with k.
  void cut() {
    const auto begin = buffer_.begin();
    std::nth_element(begin, begin + static_cast<std::ptrdiff_t>(k_ - 1), begin + static_cast<std::ptrdiff_t>(count_),
                     comes_before);
    count_ = k_;
    worst_ = buffer_[k_ - 1].logit;
    is_full_ = true;
  }

  std::span<Candidate> buffer_;
  std::size_t k_;
  std::size_t count_ = 0;
  float worst_ = -kInfinity;  // of the k best so far, once there are k
  bool is_full_ = false;
};

}  // namespace fastllm::sampling
