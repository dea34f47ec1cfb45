// Sums of exp in float say where a border or a draw falls, to within kExpSumError. Where what is exact near that place
// leaves a margin of several times that, the answer is the one that the definition gives; otherwise there is none.
#include "ops/sampling_shortcuts.h"

#include <numeric>

#include "core/random.h"

namespace fastllm::sampling {
namespace {

constexpr double kMargin = 4.0 * kExpSumError;  // the total and a partial sum may both be off

// All ids with a logit of at least `threshold`, ascending; false if they are too many.
struct Listed {
  bool is_complete;
  std::span<const int32_t> ids;
};
Listed list_from(const SampleScans& scans, std::span<const float> logits, double threshold,
                 const SampleScratch& scratch) {
  int64_t end = 0;
  const int64_t count = scans.collect(logits.data(), &end, std::ssize(logits), static_cast<float>(threshold),
                                      scratch.ids.data(), kMaxListed);
  return {end >= std::ssize(logits), scratch.ids.first(static_cast<std::size_t>(count))};
}

// top_p over all ids. The border is looked for among the likeliest, of which more are listed until it is there.
Narrowed narrow_to_mass(const SampleScans& scans, std::span<const float> logits, float top_p, const Weigher& weigher,
                        double total, const SampleScratch& scratch) {
  const double target = static_cast<double>(top_p) * total;
  for (double depth = 4.0; depth <= 16.0; depth += 4.0) {
    const Listed listed = list_from(scans, logits, weigher.largest - depth * weigher.temperature, scratch);
    if (!listed.is_complete) break;
    const std::span<Candidate> candidates = scratch.candidates.first(listed.ids.size());
    double mass = 0.0;
    for (std::size_t i = 0; i < candidates.size(); ++i) {
      const float logit = logits[static_cast<std::size_t>(listed.ids[i])];
      candidates[i] = {weigher.weight(logit), logit, listed.ids[i]};
      mass += candidates[i].weight;
    }
    if (mass < target + kMargin * total) continue;
    const Border border = find_mass(candidates, target);
    const double margin = kMargin * total;
    if (border.missing < margin || border.last.weight - border.missing < margin) break;
    return {-1, listed.ids, true, {border.last.logit, border.last.token}};
  }
  return {};
}

// The draw over all ids: the block by the sums in float, the id in it by exact weights.
int32_t draw_from_all(std::span<const float> logits, const SampleRow& row, const Weigher& weigher, double total,
                      std::span<const double> sums) {
  double rest = uniform(row.seed, row.sequence, row.position) * total;
  std::size_t block = 0;
  while (block + 1 < sums.size() && sums[block] <= rest) rest -= sums[block++];
  const double margin = kMargin * total;
  const std::size_t begin = block * static_cast<std::size_t>(kSampleBlock);
  const std::size_t end = std::min(logits.size(), begin + static_cast<std::size_t>(kSampleBlock));
  for (std::size_t i = begin; i < end; ++i) {
    const double weight = weigher.weight(logits[i]);
    if (rest < weight) return rest > margin && weight - rest > margin ? static_cast<int32_t>(i) : -1;
    rest -= weight;
  }
  return -1;
}

}  // namespace

bool can_sum(float largest, float temperature) {
  constexpr float kHighestTemperature = 1e6f;  // beyond, exponents could overflow
  constexpr float kHighestQuotient = 1e7f;     // beyond, largest - 87 * temperature is rounded, in the end to largest
  return temperature <= kHighestTemperature && std::abs(largest) <= kHighestQuotient * temperature;
}

Candidate find_first(const SampleScans& scans, std::span<const float> logits, float top, const SampleScratch& scratch) {
  int64_t begin = 0;
  constexpr int64_t kOneVector = 16;  // collect() stops after the first one
  scans.collect(logits.data(), &begin, std::ssize(logits), top, scratch.ids.data(), kOneVector);
  return {0.0, top, scratch.ids[0]};
}

std::span<Candidate> select_top(const SampleScans& scans, std::span<const float> logits, std::size_t k,
                                const SampleScratch& scratch) {
  TopBuffer top(scratch.candidates, k);
  constexpr int64_t kListed = 64;  // few: the threshold rises as better ones are found
  for (int64_t begin = 0; begin < std::ssize(logits);) {
    const float threshold = top.worst() == -kInfinity ? -kInfinity : std::nextafter(top.worst(), kInfinity);
    const int64_t count =
        scans.collect(logits.data(), &begin, std::ssize(logits), threshold, scratch.ids.data(), kListed);
    for (const int32_t id : scratch.ids.first(static_cast<std::size_t>(count))) {
      top.add(id, logits[static_cast<std::size_t>(id)]);
    }
  }
  return top.finish();
}

double sum_of_exp(const SampleScans& scans, std::span<const float> logits, float largest, float temperature,
                  const SampleScratch& scratch) {
  const std::span<double> sums = scratch.sums.first((logits.size() + kSampleBlock - 1) / kSampleBlock);
  scans.exp_sums(logits.data(), std::ssize(logits), largest, temperature, sums.data());
  return std::accumulate(sums.begin(), sums.end(), 0.0);
}

std::span<const int32_t> ids_of(std::span<const Candidate> candidates, const SampleScratch& scratch) {
  if (std::ssize(candidates) > kMaxListed) return {};
  std::size_t count = 0;
  for (const Candidate& candidate : candidates) {
    if (candidate.logit > -kInfinity) scratch.ids[count++] = candidate.token;
  }
  const std::span<int32_t> ids = scratch.ids.first(count);
  std::ranges::sort(ids);
  return ids;
}

Narrowed narrow(const SampleScans& scans, std::span<const float> logits, const SampleRow& row, const Weigher& weigher,
                const SampleScratch& scratch) {
  if (row.top_p >= 1.0f && row.min_p > 0.0f) {
    // A little deeper than min_p: the exact comparison is made in the draw.
    const double depth = (-std::log(static_cast<double>(row.min_p)) + 1e-3) * weigher.temperature;
    const Listed listed = list_from(scans, logits, weigher.largest - depth - 1e-6 * std::abs(weigher.largest), scratch);
    if (listed.is_complete) return {-1, listed.ids, false, {}};
    return {};
  }
  const auto largest = static_cast<float>(weigher.largest);
  if (!can_sum(largest, row.temperature)) return {};
  const std::span<double> sums = scratch.sums.first((logits.size() + kSampleBlock - 1) / kSampleBlock);
  scans.exp_sums(logits.data(), std::ssize(logits), largest, row.temperature, sums.data());
  const double total = std::accumulate(sums.begin(), sums.end(), 0.0);
  if (row.top_p < 1.0f) return narrow_to_mass(scans, logits, row.top_p, weigher, total, scratch);
  return {draw_from_all(logits, row, weigher, total, sums), {}, false, {}};
}

}  // namespace fastllm::sampling
