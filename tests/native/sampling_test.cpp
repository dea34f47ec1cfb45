// Sampling against a plain oracle that sorts the whole vocabulary, and properties that hold for any input.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/random.h"
#include "harness.h"
#include "ops/sampling_algorithm.h"

namespace fastllm::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Problem {
  std::vector<float> logits;
  SampleRow row;
  std::vector<TokenCount> counts;
  std::vector<LogitBias> bias;
  std::vector<int32_t> allowed;
};

Problem random_problem(Random& random) {
  Problem p;
  const int64_t vocab = random.pick(1, random.chance(20) ? 400 : 24);
  const bool has_ties = random.chance(40);
  for (int64_t i = 0; i < vocab; ++i) {
    const auto x = static_cast<float>(random.real(-8.0, 8.0));
    p.logits.push_back(has_ties ? std::round(x) : x);
    if (random.chance(3)) p.logits.back() = -kInfinity;
  }
  const auto token = [&] { return static_cast<int32_t>(random.pick(0, vocab - 1)); };
  SampleRow& row = p.row;
  row.temperature = random.chance(25) ? 0.0f : static_cast<float>(random.real(0.05, 3.0));
  if (random.chance(40)) row.top_k = static_cast<int32_t>(random.pick(1, vocab + 2));
  if (random.chance(40)) row.top_p = static_cast<float>(random.real(0.01, 1.0));
  if (random.chance(30)) row.min_p = static_cast<float>(random.real(0.0, 1.0));
  if (random.chance(30)) {
    row.repetition_penalty = static_cast<float>(random.real(0.5, 2.0));
    row.frequency_penalty = static_cast<float>(random.real(-2.0, 2.0));
    row.presence_penalty = static_cast<float>(random.real(-2.0, 2.0));
    for (int32_t id = 0; id < vocab; ++id) {
      if (random.chance(30)) p.counts.push_back({id, static_cast<int32_t>(random.pick(0, 3)), random.chance(50)});
    }
  }
  if (random.chance(30)) {
    for (int i = 0; i < 3; ++i) p.bias.push_back({token(), static_cast<float>(random.real(-5.0, 5.0))});
    if (random.chance(50)) p.bias.push_back({token(), -kInfinity});
  }
  if (random.chance(20)) {
    for (int i = 0; i < 5; ++i) p.allowed.push_back(token());
    std::ranges::sort(p.allowed);
    p.allowed.erase(std::unique(p.allowed.begin(), p.allowed.end()), p.allowed.end());
  }
  row.seed = static_cast<uint64_t>(random.pick(0, 1000));
  row.sequence = static_cast<uint64_t>(random.pick(0, 3));
  row.position = static_cast<uint64_t>(random.pick(0, 1000));
  row.wants_logprob = random.chance(50);
  row.num_top = static_cast<int32_t>(random.chance(50) ? random.pick(0, std::min<int64_t>(vocab, 20)) : 0);
  if (random.chance(10)) row.forced_token = token();
  return p;
}

struct Expected {
  int32_t token = -1;
  bool is_close = false;  // rounding may decide differently here
  double logprob = 0.0;
  int32_t rank = 0;
  std::vector<int32_t> top;
};

struct Entry {
  float logit;
  int32_t token;
};
bool is_better(const Entry& a, const Entry& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

std::vector<Entry> sorted(const std::vector<float>& logits) {
  std::vector<Entry> all;
  for (std::size_t i = 0; i < logits.size(); ++i) all.push_back({logits[i], static_cast<int32_t>(i)});
  std::ranges::sort(all, is_better);
  return all;
}

int32_t draw_by_sorting(const Problem& p, const std::vector<float>& logits, bool& is_close) {
  const SampleRow& row = p.row;
  std::vector<Entry> kept;
  for (const Entry& e : sorted(logits)) {
    const bool is_allowed = p.allowed.empty() || std::ranges::binary_search(p.allowed, e.token);
    if (is_allowed && e.logit > -kInfinity) kept.push_back(e);
  }
  if (kept.empty()) return -1;
  if (row.temperature < 1e-5f) return kept.front().token;
  if (row.top_k > 0 && kept.size() > static_cast<std::size_t>(row.top_k)) {
    kept.resize(static_cast<std::size_t>(row.top_k));
  }
  const auto weight = [&, largest = kept.front().logit](const Entry& e) {
    return std::exp((static_cast<double>(e.logit) - static_cast<double>(largest)) /
                    static_cast<double>(row.temperature));
  };
  double total = 0.0;
  for (const Entry& e : kept) total += weight(e);
  if (row.top_p < 1.0f) {
    const double target = static_cast<double>(row.top_p) * total;
    double mass = 0.0;
    std::size_t count = 0;
    while (count < kept.size() && mass < target) {
      mass += weight(kept[count++]);
      is_close = is_close || std::abs(mass - target) < 1e-9 * total;
    }
    kept.resize(std::max<std::size_t>(count, 1));
  }
  std::erase_if(kept, [&](const Entry& e) {
    is_close = is_close || (row.min_p > 0.0f && std::abs(weight(e) - static_cast<double>(row.min_p)) < 1e-9);
    return weight(e) < static_cast<double>(row.min_p);
  });
  // min_p = 1 keeps the largest and its equals; they are the same number, so rounding has no say.
  std::ranges::sort(kept, {}, &Entry::token);
  total = 0.0;
  for (const Entry& e : kept) total += weight(e);
  const double threshold = uniform(row.seed, row.sequence, row.position) * total;
  double sum = 0.0;
  for (const Entry& e : kept) {
    sum += weight(e);
    is_close = is_close || std::abs(sum - threshold) < 1e-9 * total;
    if (sum > threshold) return e.token;
  }
  return kept.empty() ? -1 : kept.back().token;
}

Expected by_sorting(const Problem& p) {
  Expected want;
  std::vector<float> logits = p.logits;
  for (const TokenCount& c : p.counts) {
    float& x = logits[static_cast<std::size_t>(c.token)];
    if (c.in_prompt || c.in_output > 0) {
      x = x > 0.0f ? x / p.row.repetition_penalty : x * p.row.repetition_penalty;
    }
    if (c.in_output > 0) {
      x -= p.row.frequency_penalty * static_cast<float>(c.in_output);
      x -= p.row.presence_penalty;
    }
  }
  for (const LogitBias& b : p.bias) logits[static_cast<std::size_t>(b.token)] += b.bias;

  const std::vector<Entry> raw = sorted(p.logits);
  if (raw.front().logit == -kInfinity) return want;
  want.token = p.row.forced_token >= 0 ? p.row.forced_token : draw_by_sorting(p, logits, want.is_close);
  for (int32_t i = 0; i < p.row.num_top; ++i) {
    want.top.push_back(raw[static_cast<std::size_t>(i)].token);
  }
  if (want.token < 0) return want;
  double sum = 0.0;
  for (const float x : p.logits) sum += std::exp(static_cast<double>(x) - static_cast<double>(raw.front().logit));
  const auto is_token = [&](const Entry& e) { return e.token == want.token; };
  const auto place = std::ranges::find_if(raw, is_token);
  want.rank = static_cast<int32_t>(place - raw.begin()) + 1;
  want.logprob = static_cast<double>(place->logit) - static_cast<double>(raw.front().logit) - std::log(sum);
  return want;
}

// Runs sample_row on a copy; the scratch is filled with noise first.
struct Got {
  SampleResult result;
  std::vector<int32_t> top;
  std::vector<float> top_logprobs;
};
Got run(const Problem& p) {
  Got got;
  std::vector<float> logits = p.logits;
  std::vector<SampleScratch::Candidate> candidates(logits.size(), {1e300, 1e30f, 1 << 30});
  std::vector<float> raw(logits.size(), 1e30f);
  got.top.assign(static_cast<std::size_t>(p.row.num_top), 77);
  got.top_logprobs.assign(static_cast<std::size_t>(p.row.num_top), 77.0f);
  SampleRow row = p.row;
  row.counts = p.counts;
  row.bias = p.bias;
  row.allowed = p.allowed;
  row.top_tokens = got.top.data();
  row.top_logprobs = got.top_logprobs.data();
  got.result = sample_row(logits, row, {candidates, raw, {}, {}});
  return got;
}

NATIVE_TEST(agrees_with_sorting) {
  Random random(options().seed);
  int64_t num_close = 0;
  const int64_t count = 4 * options().schedules;
  for (int64_t i = 0; i < count; ++i) {
    const Problem p = random_problem(random);
    const Expected want = by_sorting(p);
    const Got got = run(p);
    const std::string name = "problem " + std::to_string(i);
    if (want.is_close) {
      ++num_close;
      continue;
    }
    require_equal(got.result.token, want.token, name + ": token");
    require_equal(got.result.is_finite, want.token >= 0, name + ": is_finite");
    if (!want.top.empty()) require(got.top == want.top, name + ": top tokens");
    if (!p.row.wants_logprob || want.token < 0) continue;
    require_equal(got.result.rank, want.rank, name + ": rank");
    const double difference = std::abs(static_cast<double>(got.result.logprob) - want.logprob);
    require(want.logprob == -std::numeric_limits<double>::infinity() || difference < 1e-5, name + ": log-probability");
  }
  require(num_close * 100 < count, "too many problems on an edge to mean anything");
}

NATIVE_TEST(bad_rows_say_so_and_write_nothing_else) {
  Random random(options().seed);
  for (int64_t i = 0; i < options().schedules; ++i) {
    Problem p = random_problem(random);
    const int64_t last = static_cast<int64_t>(p.logits.size()) - 1;
    const auto where = static_cast<std::size_t>(random.pick(0, 2) == 0 ? 0 : random.pick(0, last));
    p.logits[where] = random.chance(50) ? std::numeric_limits<float>::quiet_NaN() : kInfinity;
    if (random.chance(10)) std::ranges::fill(p.logits, -kInfinity);
    const Got got = run(p);
    require(!got.result.is_finite && got.result.token == -1, "a row with NaN or infinity gave a token");
    for (const int32_t token : got.top) require_equal(token, -1, "top token of a bad row");
  }
}

NATIVE_TEST(a_penalty_that_overflows_is_a_bad_row) {
  Problem p;
  p.logits = {3e38f, 1.0f};
  p.row.repetition_penalty = 1e-30f;
  p.counts = {{0, 1, false}};
  require(!run(p).result.is_finite, "infinity was drawn from");
  p.logits = {1.0f, 2.0f};
  p.counts.clear();
  p.bias = {{0, -kInfinity}, {1, -kInfinity}};
  require(!run(p).result.is_finite, "a row without any token was drawn from");
}

// Frequencies of drawn tokens are the probabilities.
NATIVE_TEST(draws_follow_the_distribution) {
  Problem p;
  p.logits = {0.0f, 1.0f, 2.0f, -1.0f};
  constexpr int kDraws = 40000;
  std::vector<int> counts(4);
  for (int i = 0; i < kDraws; ++i) {
    p.row.position = static_cast<uint64_t>(i);
    ++counts[static_cast<std::size_t>(run(p).result.token)];
  }
  double sum = 0.0;
  for (const float x : p.logits) sum += std::exp(static_cast<double>(x));
  double chi_square = 0.0;
  for (std::size_t i = 0; i < 4; ++i) {
    const double want = kDraws * std::exp(static_cast<double>(p.logits[i])) / sum;
    chi_square += (counts[i] - want) * (counts[i] - want) / want;
  }
  require(chi_square < 16.3, "chi-square with 3 degrees of freedom above its 99.9 % point");
}

}  // namespace
}  // namespace fastllm::test
