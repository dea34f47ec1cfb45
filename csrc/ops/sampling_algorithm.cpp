#include "ops/sampling_algorithm.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>

#include "core/random.h"
#include "ops/sampling_parts.h"
#include "ops/sampling_shortcuts.h"

namespace fastllm {

namespace sampling {

// The shortest prefix of candidates[0, count) whose weights sum to `target`, found by halving: each round orders around
// the middle, sums the better half and continues in the half that holds the border. Linear on average.
Border find_mass(std::span<Candidate> candidates, double target) {
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
  return {candidates[begin], target};
}

}  // namespace sampling

namespace {

using sampling::Candidate;
using sampling::comes_before;
using sampling::Cutoff;
using sampling::kInfinity;
using sampling::TopBuffer;
using sampling::Weigher;

constexpr float kGreedyTemperature = 1e-5f;

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

// The first k in candidate order.
std::span<Candidate> select_top(std::span<const float> logits, std::span<const int32_t> allowed, std::size_t k,
                                const SampleScans* scans, const SampleScratch& scratch) {
  if (scans != nullptr && allowed.empty()) return sampling::select_top(*scans, logits, k, scratch);
  TopBuffer top(scratch.candidates, k);
  for_each_allowed(logits, allowed, [&](int32_t token, float logit) { top.add(token, logit); });
  return top.finish();
}

// Log-probabilities under the raw logits.
struct LogSoftmax {
  double largest = 0.0;
  double log_sum = 0.0;
  [[nodiscard]] float operator()(float logit) const {
    return static_cast<float>(static_cast<double>(logit) - largest - log_sum);
  }
};

LogSoftmax log_softmax(std::span<const float> raw, const SampleScans* scans, float top, const SampleScratch& scratch) {
  if (scans != nullptr && sampling::can_sum(top, 1.0f)) {
    return {static_cast<double>(top), std::log(sampling::sum_of_exp(*scans, raw, top, 1.0f, scratch))};
  }
  const double largest = static_cast<double>(find_largest(raw, {}).logit);
  double sum = 0.0;
  for (const float logit : raw) sum += std::exp(static_cast<double>(logit) - largest);
  return {largest, std::log(sum)};
}

int32_t rank_of(std::span<const float> raw, int32_t token, const SampleScans* scans) {
  const float logit = raw[static_cast<std::size_t>(token)];
  if (scans != nullptr) return 1 + static_cast<int32_t>(scans->count_before(raw.data(), std::ssize(raw), logit, token));
  int32_t rank = 1;
  for (std::size_t i = 0; i < raw.size(); ++i) {
    if (raw[i] > logit || (raw[i] == logit && static_cast<int32_t>(i) < token)) ++rank;
  }
  return rank;
}

void write_top(std::span<const float> raw, const LogSoftmax& logprob_of, const SampleRow& row, const SampleScans* scans,
               const SampleScratch& scratch) {
  const auto wanted = static_cast<std::size_t>(row.num_top);
  if (wanted == 0) return;
  const std::span<Candidate> top = select_top(raw, {}, wanted, scans, scratch);
  std::ranges::sort(top, comes_before);
  for (std::size_t i = 0; i < top.size(); ++i) {
    row.top_tokens[i] = top[i].token;
    row.top_logprobs[i] = logprob_of(top[i].logit);
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

// By words: those of a grammar allow nearly all of their ids or none of them.
void apply_mask(std::span<float> logits, std::span<const uint32_t> mask) {
  const std::size_t num_words = std::min(mask.size(), (logits.size() + 31) / 32);
  for (std::size_t w = 0; w < num_words; ++w) {
    const std::span<float> ids = logits.subspan(32 * w, std::min<std::size_t>(32, logits.size() - 32 * w));
    if (mask[w] == 0) {
      std::ranges::fill(ids, -kInfinity);
      continue;
    }
    for (uint32_t banned = ~mask[w]; banned != 0; banned &= banned - 1) {
      const auto i = static_cast<std::size_t>(std::countr_zero(banned));
      if (i < ids.size()) ids[i] = -kInfinity;
    }
  }
  std::ranges::fill(logits.subspan(std::min(32 * num_words, logits.size())), -kInfinity);
}

// A histogram over the exponent finds the bin that holds the border of top_p; only that bin is looked at in detail.
// 8 bins per factor of e for 64 of them, and the last bin takes the rest.
constexpr std::size_t kNumBins = 512;
constexpr double kBinsPerUnit = 8.0;

std::size_t bin_of(double exponent) {
  const double bin = -exponent * kBinsPerUnit;
  return bin < static_cast<double>(kNumBins - 1) ? static_cast<std::size_t>(bin) : kNumBins - 1;
}

void apply_top_p(std::span<const float> logits, std::span<const int32_t> allowed, const SampleRow& row,
                 const Weigher& weigher, Cutoff& cutoff, std::span<Candidate> buffer) {
  std::array<double, kNumBins> mass{};
  for_each_allowed(logits, allowed, [&](int32_t token, float logit) {
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
  for_each_allowed(logits, allowed, [&](int32_t token, float logit) {
    if (!cutoff.keeps(logit, token)) return;
    const double exponent = weigher.exponent(logit);
    if (bin_of(exponent) == border) buffer[count++] = {std::exp(exponent), logit, token};
  });
  // An empty border bin: rounding put the border past the last candidate, so all of them stay.
  if (count > 0) cutoff.tighten(sampling::find_mass(buffer.first(count), target).last);
}

int32_t draw(std::span<const float> logits, std::span<const int32_t> allowed, const SampleRow& row,
             const Weigher& weigher, const Cutoff& cutoff, std::span<Candidate> buffer) {
  // min_p = 0 keeps all: log(0) is -infinity and no exponent is below that.
  const double least_exponent = std::log(static_cast<double>(row.min_p));
  std::size_t count = 0;
  double total = 0.0;
  for_each_allowed(logits, allowed, [&](int32_t token, float logit) {
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
//
// With scans (`top` is then the largest logit), ids that cannot be drawn are set aside first; the arithmetic on the
// others is the same, and so is the token. Where the scans cannot tell, every id is looked at.
int32_t choose(std::span<const float> logits, const SampleRow& row, const SampleScans* scans, float top,
               const SampleScratch& scratch) {
  if (!row.allowed.empty()) scans = nullptr;
  const Candidate largest =
      scans != nullptr ? sampling::find_first(*scans, logits, top, scratch) : find_largest(logits, row.allowed);
  if (largest.token < 0 || largest.logit == kInfinity) return -1;
  if (row.temperature < kGreedyTemperature) return largest.token;
  const Weigher weigher{static_cast<double>(largest.logit), static_cast<double>(row.temperature)};
  std::span<const int32_t> allowed = row.allowed;
  Cutoff cutoff;
  const auto k = static_cast<std::size_t>(row.top_k);
  const std::size_t num_allowed = allowed.empty() ? logits.size() : allowed.size();
  const bool has_top_k = k > 0 && k < num_allowed;
  if (has_top_k) {
    const std::span<Candidate> first = select_top(logits, allowed, k, scans, scratch);
    const Candidate last = *std::ranges::max_element(first, comes_before);
    if (last.logit > -kInfinity) cutoff = {last.logit, last.token};
    if (scans != nullptr) allowed = sampling::ids_of(first, scratch);
  } else if (scans != nullptr) {
    const sampling::Narrowed narrowed = sampling::narrow(*scans, logits, row, weigher, scratch);
    if (narrowed.token >= 0) return narrowed.token;
    if (narrowed.has_cutoff) return draw(logits, narrowed.ids, row, weigher, narrowed.cutoff, scratch.candidates);
    allowed = narrowed.ids;
  }
  if (row.top_p < 1.0f) apply_top_p(logits, allowed, row, weigher, cutoff, scratch.candidates);
  return draw(logits, allowed, row, weigher, cutoff, scratch.candidates);
}

}  // namespace

SampleScratch SampleScratch::take(Arena& arena, int64_t vocab_size) {
  const auto size = static_cast<std::size_t>(vocab_size);
  auto* candidates = arena.take<Candidate>(vocab_size);
  auto* raw = arena.take<float>(vocab_size);
  auto* ids = arena.take<int32_t>(kMaxListed);
  const int64_t num_blocks = (vocab_size + kSampleBlock - 1) / kSampleBlock;
  auto* sums = arena.take<double>(num_blocks);
  if (candidates == nullptr) return {};  // planning
  return {{candidates, size}, {raw, size}, {ids, kMaxListed}, {sums, static_cast<std::size_t>(num_blocks)}};
}

SampleResult sample_row(std::span<float> logits, const SampleRow& row, const SampleScratch& scratch,
                        const SampleScans* scans) {
  SampleResult result;
  std::fill_n(row.top_tokens, row.num_top, -1);
  std::fill_n(row.top_logprobs, row.num_top, -kInfinity);
  if (std::ssize(logits) < kMinScanned) scans = nullptr;
  float top = 0.0f;  // with scans
  const auto is_finite = [&] {
    if (scans == nullptr) return !has_nan_or_positive_infinity(logits) && find_largest(logits, {}).token >= 0;
    top = scans->largest(logits.data(), std::ssize(logits));
    return std::isfinite(top);
  };
  if (!is_finite()) return result;

  std::span<const float> raw = logits;
  LogSoftmax logprob_of;
  if (row.wants_logprob || row.num_top > 0) {
    logprob_of = log_softmax(raw, scans, top, scratch);
    write_top(raw, logprob_of, row, scans, scratch);
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
    if ((!row.counts.empty() || !row.bias.empty()) && !is_finite()) return result;
    if (!row.mask.empty()) {
      apply_mask(logits, row.mask);
      if (!is_finite()) return result;  // nothing is allowed
    }
    result.token = choose(logits, row, scans, top, scratch);
    if (result.token < 0) return result;
  }
  result.is_finite = true;
  if (row.wants_logprob) {
    result.logprob = logprob_of(raw[static_cast<std::size_t>(result.token)]);
    result.rank = rank_of(raw, result.token, scans);
  }
  return result;
}

}  // namespace fastllm
