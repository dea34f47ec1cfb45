#include "ops/sampling_algorithm.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "core/random.h"

namespace fastllm {
namespace {

using Candidate = SampleScratch::Candidate;

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kGreedyTemperature = 1e-5f;

bool comes_before(const Candidate& a, const Candidate& b) {
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

// Written over the bits so that the compiler vectorises it: it runs over the whole vocabulary for every token.
bool has_nan_or_positive_infinity(std::span<const float> x) {
  constexpr uint32_t kInfinityBits = 0x7f800000u;
  uint32_t is_bad = 0;
  for (const float value : x) {
    const auto bits = std::bit_cast<uint32_t>(value);
    is_bad |=
        static_cast<uint32_t>((bits & 0x7fffffffu) > kInfinityBits) | static_cast<uint32_t>(bits == kInfinityBits);
  }
  return is_bad != 0;
}

// Calls f(token, logit) for the allowed ids, ascending.
template <class F>
void for_each_allowed(std::span<const float> logits, std::span<const int32_t> allowed, F&& f) {
  if (!allowed.empty()) {
    for (const int32_t token : allowed) f(token, logits[static_cast<std::size_t>(token)]);
    return;
  }
  for (std::size_t i = 0; i < logits.size(); ++i) f(static_cast<int32_t>(i), logits[i]);
}

Candidate find_largest(std::span<const float> logits, std::span<const int32_t> allowed) {
  Candidate best{0.0, -kInfinity, -1};
  for_each_allowed(logits, allowed, [&](int32_t token, float logit) {
    if (logit > best.logit) best = {0.0, logit, token};
  });
  return best;
}

// The first k in candidate order, themselves in no order. A buffer of up to 2k is cut back to k each time it is full,
// so the cost is O(V) with a constant that falls with k. Ids come ascending: a later equal logit never displaces.
// Returns how many there are.
std::size_t select_top(std::span<const float> logits, std::span<const int32_t> allowed, std::size_t k,
                       std::span<Candidate> buffer) {
  const std::size_t capacity = std::min(buffer.size(), std::max<std::size_t>(2 * k, 64));
  std::size_t count = 0;
  float worst = -kInfinity;  // of the k best so far, once there are k
  bool is_full = false;
  const auto cut = [&] {
    const auto begin = buffer.begin();
    std::nth_element(begin, begin + static_cast<std::ptrdiff_t>(k - 1), begin + static_cast<std::ptrdiff_t>(count),
                     comes_before);
    count = k;
    worst = buffer[k - 1].logit;
    is_full = true;
  };
  for_each_allowed(logits, allowed, [&](int32_t token, float logit) {
    if (is_full && logit <= worst) return;
    if (count == capacity) cut();
    if (is_full && logit <= worst) return;
    buffer[count++] = {0.0, logit, token};
  });
  if (count > k) cut();
  return count;
}

// Log-probabilities under the raw logits.
struct LogSoftmax {
  double largest = 0.0;
  double log_sum = 0.0;
  [[nodiscard]] float operator()(float logit) const {
    return static_cast<float>(static_cast<double>(logit) - largest - log_sum);
  }
};

LogSoftmax log_softmax(std::span<const float> raw) {
  const double largest = static_cast<double>(find_largest(raw, {}).logit);
  double sum = 0.0;
  for (const float logit : raw) sum += std::exp(static_cast<double>(logit) - largest);
  return {largest, std::log(sum)};
}

int32_t rank_of(std::span<const float> raw, int32_t token) {
  const float logit = raw[static_cast<std::size_t>(token)];
  int32_t rank = 1;
  for (std::size_t i = 0; i < raw.size(); ++i) {
    if (raw[i] > logit || (raw[i] == logit && static_cast<int32_t>(i) < token)) ++rank;
  }
  return rank;
}

void write_top(std::span<const float> raw, const LogSoftmax& logprob_of, const SampleRow& row,
               std::span<Candidate> buffer) {
  const auto wanted = static_cast<std::size_t>(row.num_top);
  if (wanted == 0) return;
  const std::size_t count = select_top(raw, {}, wanted, buffer);
  std::sort(buffer.begin(), buffer.begin() + static_cast<std::ptrdiff_t>(count), comes_before);
  for (std::size_t i = 0; i < count; ++i) {
    row.top_tokens[i] = buffer[i].token;
    row.top_logprobs[i] = logprob_of(buffer[i].logit);
  }
}

void apply_penalties(std::span<float> logits, const SampleRow& row) {
  for (const TokenCount& count : row.counts) {
    float& logit = logits[static_cast<std::size_t>(count.token)];
    const bool is_generated = count.in_output > 0;
    if (count.in_prompt || is_generated) {
      logit = logit > 0.0f ? logit / row.repetition_penalty : logit * row.repetition_penalty;
    }
    if (!is_generated) continue;
    logit -= row.frequency_penalty * static_cast<float>(count.in_output);
    logit -= row.presence_penalty;
  }
  for (const LogitBias& bias : row.bias) logits[static_cast<std::size_t>(bias.token)] += bias.bias;
}

void apply_mask(std::span<float> logits, std::span<const uint32_t> mask) {
  if (mask.empty()) return;
  for (std::size_t i = 0; i < logits.size(); ++i) {
    const uint32_t word = i / 32 < mask.size() ? mask[i / 32] : 0;
    if ((word >> (i % 32) & 1u) == 0) logits[i] = -kInfinity;
  }
}

// Probabilities of the candidates, up to a factor.
struct Weigher {
  double largest;
  double temperature;
  [[nodiscard]] double exponent(float logit) const { return (static_cast<double>(logit) - largest) / temperature; }
  [[nodiscard]] double weight(float logit) const { return std::exp(exponent(logit)); }
};

// The shortest prefix of candidates[0, count) whose weights sum to `target`, found by halving: each round orders around
// the middle, sums the better half and continues in the half that holds the border. Linear on average.
// Returns the last candidate of the prefix.
Candidate find_mass(std::span<Candidate> candidates, double target) {
  std::size_t begin = 0;
  std::size_t end = candidates.size();
  while (end - begin > 1) {
    const std::size_t middle = begin + (end - begin) / 2;
    const auto at = [&](std::size_t i) { return candidates.begin() + static_cast<std::ptrdiff_t>(i); };
    std::nth_element(at(begin), at(middle), at(end), comes_before);
    double mass = 0.0;
    for (std::size_t i = begin; i < middle; ++i) mass += candidates[i].weight;
    if (mass >= target) {
      end = middle;
    } else {
      begin = middle;
      target -= mass;
    }
  }
  return candidates[begin];
}

// A histogram over the exponent finds the bin that holds the border of top_p; only that bin is looked at in detail.
// 8 bins per factor of e for 64 of them, and the last bin takes the rest.
constexpr std::size_t kNumBins = 512;
constexpr double kBinsPerUnit = 8.0;

std::size_t bin_of(double exponent) {
  const double bin = -exponent * kBinsPerUnit;
  return bin < static_cast<double>(kNumBins - 1) ? static_cast<std::size_t>(bin) : kNumBins - 1;
}

void apply_top_p(std::span<const float> logits, const SampleRow& row, const Weigher& weigher, Cutoff& cutoff,
                 std::span<Candidate> buffer) {
  std::array<double, kNumBins> mass{};
  for_each_allowed(logits, row.allowed, [&](int32_t token, float logit) {
    if (!cutoff.keeps(logit, token)) return;
    const double exponent = weigher.exponent(logit);
    mass[bin_of(exponent)] += std::exp(exponent);
  });
  double total = 0.0;
  for (const double m : mass) total += m;
  double target = static_cast<double>(row.top_p) * total;
  std::size_t border = 0;
  while (border + 1 < kNumBins && mass[border] < target) target -= mass[border++];
  std::size_t count = 0;
  for_each_allowed(logits, row.allowed, [&](int32_t token, float logit) {
    if (!cutoff.keeps(logit, token)) return;
    const double exponent = weigher.exponent(logit);
    if (bin_of(exponent) == border) buffer[count++] = {std::exp(exponent), logit, token};
  });
  // An empty border bin: rounding put the border past the last candidate, so all of them stay.
  if (count > 0) cutoff.tighten(find_mass(buffer.first(count), target));
}

int32_t draw(std::span<const float> logits, const SampleRow& row, const Weigher& weigher, const Cutoff& cutoff,
             std::span<Candidate> buffer) {
  // min_p = 0 keeps all: log(0) is -infinity and no exponent is below that.
  const double least_exponent = std::log(static_cast<double>(row.min_p));
  std::size_t count = 0;
  double total = 0.0;
  for_each_allowed(logits, row.allowed, [&](int32_t token, float logit) {
    if (!cutoff.keeps(logit, token)) return;
    const double exponent = weigher.exponent(logit);
    if (exponent < least_exponent) return;
    const double weight = std::exp(exponent);
    total += weight;
    buffer[count++] = {weight, logit, token};
  });
  const double threshold = uniform(row.seed, row.sequence, row.position) * total;
  double sum = 0.0;
  int32_t last = -1;
  for (const Candidate& candidate : buffer.first(count)) {
    if (candidate.weight <= 0.0) continue;
    sum += candidate.weight;
    last = candidate.token;
    if (sum > threshold) break;
  }
  return last;  // the sum repeats the additions of `total`, so it passes any threshold below it
}

// After penalties and bias: the token, or -1 if none is left or a penalty overflowed.
int32_t choose(std::span<const float> logits, const SampleRow& row, std::span<Candidate> buffer) {
  const Candidate largest = find_largest(logits, row.allowed);
  if (largest.token < 0 || largest.logit == kInfinity) return -1;
  if (row.temperature < kGreedyTemperature) return largest.token;
  Cutoff cutoff;
  const auto k = static_cast<std::size_t>(row.top_k);
  const std::size_t num_allowed = row.allowed.empty() ? logits.size() : row.allowed.size();
  if (k > 0 && k < num_allowed) {
    const std::size_t count = select_top(logits, row.allowed, k, buffer);
    const auto end = buffer.begin() + static_cast<std::ptrdiff_t>(count);
    const Candidate last = *std::max_element(buffer.begin(), end, comes_before);
    if (last.logit > -kInfinity) cutoff = {last.logit, last.token};
  }
  const Weigher weigher{static_cast<double>(largest.logit), static_cast<double>(row.temperature)};
  if (row.top_p < 1.0f) apply_top_p(logits, row, weigher, cutoff, buffer);
  return draw(logits, row, weigher, cutoff, buffer);
}

}  // namespace

SampleScratch SampleScratch::take(Arena& arena, int64_t vocab_size) {
  const auto size = static_cast<std::size_t>(vocab_size);
  auto* candidates = arena.take<Candidate>(vocab_size);
  auto* raw = arena.take<float>(vocab_size);
  if (candidates == nullptr) return {};  // planning
  return {{candidates, size}, {raw, size}};
}

SampleResult sample_row(std::span<float> logits, const SampleRow& row, const SampleScratch& scratch) {
  SampleResult result;
  std::fill_n(row.top_tokens, row.num_top, -1);
  std::fill_n(row.top_logprobs, row.num_top, -kInfinity);
  if (has_nan_or_positive_infinity(logits) || find_largest(logits, {}).token < 0) return result;

  std::span<const float> raw = logits;
  LogSoftmax logprob_of;
  if (row.wants_logprob || row.num_top > 0) {
    logprob_of = log_softmax(raw);
    write_top(raw, logprob_of, row, scratch.candidates);
  }
  if (row.forced_token >= 0) {
    result.token = row.forced_token;
  } else {
    if (row.wants_logprob) {  // the steps below overwrite the logits; rank and log-probability are of the raw ones
      std::copy(logits.begin(), logits.end(), scratch.raw.begin());
      raw = scratch.raw.first(logits.size());
    }
    apply_penalties(logits, row);
    // Before the choice is trusted: a penalty may overflow, and a NaN would hide from every comparison.
    if ((!row.counts.empty() || !row.bias.empty()) && has_nan_or_positive_infinity(logits)) return result;
    apply_mask(logits, row.mask);
    result.token = choose(logits, row, scratch.candidates);
    if (result.token < 0) return result;
  }
  result.is_finite = true;
  if (row.wants_logprob) {
    result.logprob = logprob_of(raw[static_cast<std::size_t>(result.token)]);
    result.rank = rank_of(raw, result.token);
  }
  return result;
}

}  // namespace fastllm
