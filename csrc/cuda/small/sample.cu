// The next token of each row, without a sort: penalties, bias, mask, then temperature, top_k, top_p, min_p and a draw
// by inverse CDF in ascending token id, as ops/sampling.h orders them. Before it, under the raw logits: the sum of the
// softmax, and the most likely tokens with their log-probabilities; after it, those of the token, and its rank.
//                                                                             logits [R, V] -> results [R], tops
//
// One block per row. A candidate is a 64-bit number: the logit as an integer of the same order, then the id inverted,
// so that a larger number comes first and no two are equal. top_k and top_p look for the number of the last candidate
// that stays, digit by digit of 8 bits: a histogram of the candidates that share the digits so far, and a walk from its
// top until k, or the mass, is reached. It ends when a bin is kept whole, which is mostly after three or four digits.
// Mass is exp((logit - largest) / temperature) in 2^-40 as a 64-bit integer: its sums are exact, so no order of the
// atomics can change a result, and a row's token depends on its own logits alone.
// The raw logits come back at the end: a mask is applied as they are read, and what penalties change is kept aside.
// The softmax is summed in the same way, rounded: its logarithm is within 3e-7 of the exact one.
// Bytes read: V * 4 a pass; 3 passes for greedy rows, about 6 more for each of top_k, top_p and num_top, 2 for the
// log-probability of the token, from L2.
// Defined by ops/sampling_algorithm.cpp; tested in tests/ops/test_sample.py.
#include "cuda/device_mat.h"
#include "cuda/sampler.h"

namespace fastllm::cuda {
namespace {

constexpr uint32_t kThreads = 128;
constexpr uint32_t kNumBins = 256;
constexpr float kGreedyTemperature = 1e-5f;
static_assert(kMaxDeviceTop <= kThreads);

struct SampleShared {
  uint64_t bins[kNumBins];
  uint64_t sums[kThreads];  // of the draw; before it, the most likely candidates
  uint64_t amount;
  uint64_t best;
  uint64_t cutoff;
  int32_t owner;
  bool is_whole;
};

// Larger for larger logits; -0 and +0 alike.
__device__ inline uint32_t ordered(float logit) {
  const auto bits = fl::bit_cast<uint32_t>(logit + 0.0f);
  return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}
__device__ inline float logit_of(uint64_t candidate) {
  const auto key = static_cast<uint32_t>(candidate >> 32);
  return fl::bit_cast<float>((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}
__device__ inline uint64_t candidate_of(float logit, int32_t token) {
  return static_cast<uint64_t>(ordered(logit)) << 32 | ~static_cast<uint32_t>(token);
}
__device__ inline int32_t token_of(uint64_t candidate) {
  return static_cast<int32_t>(~static_cast<uint32_t>(candidate));
}
// Below every candidate whose logit is above -infinity.
__device__ inline uint64_t no_candidate() { return static_cast<uint64_t>(ordered(-INFINITY) + 1) << 32; }

// One row, as its block sees it.
struct Row {
  float* logits;
  int32_t vocab;
  SampleShared* shared;
  const uint32_t* mask = nullptr;  // ids whose bit is not set count as -infinity

  __device__ float logit(int32_t i) const {
    return mask == nullptr || (mask[i / 32] >> (i % 32) & 1u) != 0 ? logits[i] : -INFINITY;
  }
  template <class F>
  __device__ void for_each(F f) const {
    for (auto i = static_cast<int32_t>(threadIdx.x); i < vocab; i += kThreads) f(i, logit(i));
  }

  // Whether any logit is NaN or +infinity.
  __device__ bool is_bad() const {
    bool bad = false;
    for_each([&](int32_t, float x) { bad = bad || !(x < INFINITY); });
    return fl::sync_threads_or(bad);
  }

  __device__ uint64_t first_candidate() const {
    if (threadIdx.x == 0) shared->best = 0;
    fl::sync_threads();
    uint64_t best = 0;
    for_each([&](int32_t i, float x) {
      const uint64_t candidate = candidate_of(x, i);
      best = candidate > best ? candidate : best;
    });
    fl::atomic_max(&shared->best, best);
    fl::sync_threads();
    const uint64_t result = shared->best;
    fl::sync_threads();  // before anyone resets it
    return result;
  }

  // Sum of amount(logit) over the candidates from `cutoff` on.
  template <class Amount>
  __device__ uint64_t total(uint64_t cutoff, Amount amount) const {
    if (threadIdx.x == 0) shared->amount = 0;
    fl::sync_threads();
    uint64_t sum = 0;
    for_each([&](int32_t i, float x) {
      if (candidate_of(x, i) >= cutoff) sum += amount(x);
    });
    fl::atomic_add(&shared->amount, sum);
    fl::sync_threads();
    const uint64_t result = shared->amount;
    fl::sync_threads();  // before anyone resets it
    return result;
  }

  // The cutoff that keeps the shortest run of first candidates whose amounts reach `target`, 0 < target <= the total.
  template <class Amount>
  __device__ uint64_t select(uint64_t cutoff, uint64_t target, Amount amount) const {
    uint64_t prefix = 0;
    for (int shift = 56; shift >= 0; shift -= 8) {
      for (uint32_t i = threadIdx.x; i < kNumBins; i += kThreads) shared->bins[i] = 0;
      fl::sync_threads();
      for_each([&](int32_t i, float x) {
        const uint64_t candidate = candidate_of(x, i);
        const bool shares_prefix = shift == 56 || candidate >> (shift + 8) == prefix;
        if (candidate >= cutoff && shares_prefix) fl::atomic_add(&shared->bins[candidate >> shift & 255u], amount(x));
      });
      fl::sync_threads();
      if (threadIdx.x == 0) {
        uint64_t left = target;
        uint32_t bin = kNumBins - 1;
        while (bin > 0 && shared->bins[bin] < left) left -= shared->bins[bin--];
        shared->cutoff = prefix << 8 | bin;
        shared->amount = left;
        shared->is_whole = shared->bins[bin] <= left;
      }
      fl::sync_threads();
      prefix = shared->cutoff;
      target = shared->amount;
      const bool is_whole = shared->is_whole;
      fl::sync_threads();  // before anyone resets them
      if (is_whole || shift == 0) {
        const uint64_t found = prefix << shift;
        return found > cutoff ? found : cutoff;
      }
    }
    return cutoff;
  }

  // The first token in ascending id at which the sum of amount(logit) passes uniform * total; -1 if the total is 0.
  template <class Amount>
  __device__ int32_t draw(uint64_t cutoff, double uniform, Amount amount) const {
    const int32_t chunk = (vocab + static_cast<int32_t>(kThreads) - 1) / static_cast<int32_t>(kThreads);
    const int32_t begin = chunk * static_cast<int32_t>(threadIdx.x);
    const int32_t end = begin + chunk < vocab ? begin + chunk : vocab;
    uint64_t sum = 0;
    for (int32_t i = begin; i < end; ++i) {
      if (candidate_of(logit(i), i) >= cutoff) sum += amount(logit(i));
    }
    shared->sums[threadIdx.x] = sum;
    fl::sync_threads();
    if (threadIdx.x == 0) {
      uint64_t all = 0;
      for (uint32_t t = 0; t < kThreads; ++t) all += shared->sums[t];
      auto threshold = static_cast<uint64_t>(uniform * static_cast<double>(all));
      if (threshold >= all) threshold = all - 1;
      uint32_t owner = 0;
      while (owner < kThreads - 1 && shared->sums[owner] <= threshold) threshold -= shared->sums[owner++];
      shared->owner = all == 0 ? -1 : static_cast<int32_t>(owner);
      shared->amount = threshold;
    }
    fl::sync_threads();
    const int32_t owner = shared->owner;
    fl::sync_threads();  // before it becomes the token
    if (owner < 0) return -1;
    if (owner == static_cast<int32_t>(threadIdx.x)) {
      uint64_t left = shared->amount;
      for (int32_t i = begin; i < end; ++i) {
        if (candidate_of(logit(i), i) < cutoff) continue;
        const uint64_t weight = amount(logit(i));
        if (weight > left) {
          shared->owner = i;
          break;
        }
        left -= weight;
      }
    }
    fl::sync_threads();
    return shared->owner;
  }
};

struct One {
  __device__ uint64_t operator()(float) const { return 1; }
};

// Under the raw logits of a row: log(sum of exp(logit - largest)). The largest adds 1, and log1p keeps what the others
// add to it.
__device__ inline float log_sum_of_exp(const Row& row, float largest) {
  constexpr uint64_t kOne = uint64_t{1} << 40;
  const uint64_t sum =
      row.total(0, [&](float x) { return static_cast<uint64_t>(fmaf(expf(x - largest), 0x1p40f, 0.5f)); });
  return log1pf(static_cast<float>(sum - kOne) * 0x1p-40f);
}
// Neither term is above 0: nothing cancels.
__device__ inline float logprob_of(float logit, float largest, float log_sum) { return (logit - largest) - log_sum; }

// The `count` most likely tokens, 0 < count <= V: gathered in any order, then each thread finds the place of one.
__device__ inline void write_top(const Row& row, float largest, float log_sum, int32_t count, TopLogprob* tops) {
  const uint64_t last = count < row.vocab ? row.select(0, static_cast<uint64_t>(count), One{}) : 0;
  if (threadIdx.x == 0) row.shared->amount = 0;
  fl::sync_threads();
  row.for_each([&](int32_t i, float x) {
    const uint64_t candidate = candidate_of(x, i);
    if (candidate >= last) row.shared->sums[fl::atomic_add(&row.shared->amount, uint64_t{1})] = candidate;
  });
  fl::sync_threads();
  if (static_cast<int32_t>(threadIdx.x) < count) {
    const uint64_t mine = row.shared->sums[threadIdx.x];
    int32_t place = 0;
    for (int32_t i = 0; i < count; ++i) place += row.shared->sums[i] > mine ? 1 : 0;
    tops[place] = {token_of(mine), logprob_of(row.logits[token_of(mine)], largest, log_sum)};
  }
  fl::sync_threads();  // before anyone resets them
}

// Calls f(index, token) for the entries [begin, end) of an array, one thread each.
template <class Entry, class F>
__device__ void for_entries(const Entry* entries, int32_t begin, int32_t end, F f) {
  for (int32_t i = begin + static_cast<int32_t>(threadIdx.x); i < end; i += kThreads) f(i, entries[i].token);
}

__device__ inline void apply_penalties(const Row& row, const SampleParams& p, const DeviceSampleRow& params) {
  for_entries(p.counts, params.count_begin, params.count_end,
              [&](int32_t i, int32_t token) { p.raw_of_counts[i] = row.logits[token]; });
  for_entries(p.bias, params.bias_begin, params.bias_end,
              [&](int32_t i, int32_t token) { p.raw_of_bias[i] = row.logits[token]; });
  fl::sync_threads();
  for_entries(p.counts, params.count_begin, params.count_end, [&](int32_t i, int32_t token) {  // tokens are distinct
    const TokenCount count = p.counts[i];
    float logit = row.logits[token];
    const bool is_generated = count.in_output > 0;
    if (count.in_prompt || is_generated) {
      logit = logit > 0.0f ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    }
    if (is_generated) {
      logit -= params.frequency_penalty * static_cast<float>(count.in_output);
      logit -= params.presence_penalty;
    }
    row.logits[token] = logit;
  });
  fl::sync_threads();
  for (int32_t i = params.bias_begin; i < params.bias_end; ++i) {  // in order: a token has one thread
    const LogitBias bias = p.bias[i];
    if (static_cast<uint32_t>(bias.token) % kThreads == threadIdx.x) row.logits[bias.token] += bias.bias;
  }
  fl::sync_threads();
}
__device__ inline void remove_penalties(const Row& row, const SampleParams& p, const DeviceSampleRow& params) {
  fl::sync_threads();  // all have read what changes
  for_entries(p.counts, params.count_begin, params.count_end,
              [&](int32_t i, int32_t token) { row.logits[token] = p.raw_of_counts[i]; });
  for_entries(p.bias, params.bias_begin, params.bias_end,  // a token of both lists gets the same number twice
              [&](int32_t i, int32_t token) { row.logits[token] = p.raw_of_bias[i]; });
  fl::sync_threads();
}

// After penalties and bias: the token, or -1 if none is left.
__device__ inline int32_t choose(const Row& row, const DeviceSampleRow& params) {
  const uint64_t first = row.first_candidate();
  if (first < no_candidate()) return -1;
  if (params.temperature < kGreedyTemperature) return token_of(first);

  const float largest = logit_of(first);
  const auto exponent = [&](float logit) { return (logit - largest) / params.temperature; };
  const auto mass = [&](float logit) { return static_cast<uint64_t>(expf(exponent(logit)) * 0x1p40f); };
  uint64_t cutoff = no_candidate();
  if (params.top_k > 0 && static_cast<uint64_t>(params.top_k) < row.total(cutoff, One{})) {
    cutoff = row.select(cutoff, static_cast<uint64_t>(params.top_k), One{});
  }
  if (params.top_p < 1.0f) {
    const uint64_t all = row.total(cutoff, mass);
    auto target = static_cast<uint64_t>(static_cast<double>(params.top_p) * static_cast<double>(all));
    target = target < 1 ? 1 : target > all ? all : target;
    cutoff = row.select(cutoff, target, mass);
  }
  const float least = params.min_p > 0.0f ? logf(params.min_p) : -INFINITY;
  return row.draw(cutoff, params.uniform, [&](float x) { return exponent(x) < least ? uint64_t{0} : mass(x); });
}

__device__ inline int32_t draw_token(const Row& raw, const SampleParams& p, const DeviceSampleRow& params) {
  Row row = raw;
  if (params.mask_idx >= 0) row.mask = p.masks + params.mask_idx * p.mask_words;
  if (params.count_end == params.count_begin && params.bias_end == params.bias_begin) return choose(row, params);
  apply_penalties(raw, p, params);
  const int32_t token = raw.is_bad() ? -1 : choose(row, params);  // a penalty may overflow
  remove_penalties(raw, p, params);
  return token;
}

__device__ inline DeviceSampleResult sample_row(const Row& raw, const SampleParams& p, const DeviceSampleRow& params) {
  TopLogprob* tops = p.tops + params.top_begin;
  if (static_cast<int32_t>(threadIdx.x) < params.num_top) tops[threadIdx.x] = {-1, -INFINITY};
  DeviceSampleResult result{-1, 0.0f, 0};
  if (raw.is_bad()) return result;
  const uint64_t first = raw.first_candidate();
  if (first < no_candidate()) return result;
  const float largest = logit_of(first);
  float log_sum = 0.0f;
  if (params.wants_logprob != 0 || params.num_top > 0) log_sum = log_sum_of_exp(raw, largest);
  if (params.num_top > 0) write_top(raw, largest, log_sum, params.num_top, tops);
  result.token = params.forced_token >= 0 ? params.forced_token : draw_token(raw, p, params);
  if (result.token >= 0 && params.wants_logprob != 0) {
    const float logit = raw.logits[result.token];
    result.logprob = logprob_of(logit, largest, log_sum);
    result.rank = static_cast<int32_t>(raw.total(candidate_of(logit, result.token), One{}));
  }
  return result;
}

// registers: 64
__global__ void __launch_bounds__(kThreads) sample_kernel(SampleParams p) {
  const DeviceSampleRow params = p.rows[blockIdx.x];
  const Row row{p.logits + params.row * p.stride, p.vocab_size, fl::smem<SampleShared>()};
  const DeviceSampleResult result = sample_row(row, p, params);
  if (threadIdx.x == 0) p.results[blockIdx.x] = result;
}

}  // namespace

void sample(fl::Stream& stream, const SampleParams& p, int64_t num_rows) {
  fl::launch(stream, {"sample", {narrow<uint32_t>(num_rows)}, kThreads, sizeof(SampleShared)}, sample_kernel, p);
}

}  // namespace fastllm::cuda
