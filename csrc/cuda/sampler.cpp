#include "cuda/sampler.h"

#include <algorithm>

#include "core/checked.h"
#include "core/random.h"

namespace fastllm::cuda {
namespace {

// Room for penalties, in entries per row of the largest step. The rows of a launch share it.
constexpr int64_t kCountsPerRow = 1024;
constexpr int64_t kBiasPerRow = 512;

int64_t words_of_mask(const OpLimits& limits) { return ceil_div(limits.vocab_size, 32); }

}  // namespace

// Room for any row that the device samples.
Sampler::Sizes Sampler::Sizes::most(const OpLimits& limits) {
  const int64_t rows = limits.max_logit_rows;
  return {rows, std::max(checked_mul(rows, kCountsPerRow), limits.vocab_size),
          std::max(checked_mul(rows, kBiasPerRow), limits.vocab_size), rows, checked_mul(rows, kMaxDeviceTop)};
}

// Adds what the row needs; false, and nothing added, if the launch has no room for it.
bool Sampler::Sizes::add(const SampleRow& row, const Sizes& most) {
  const Sizes sum{rows + 1, counts + std::ssize(row.counts), bias + std::ssize(row.bias),
                  masks + (row.mask.empty() && row.allowed.empty() ? 0 : 1), tops + row.num_top};
  if (sum.counts > most.counts || sum.bias > most.bias) return false;
  *this = sum;
  return true;
}

Sampler::Arrays Sampler::Arrays::take(Arena& arena, const Sizes& sizes, int64_t mask_words) {
  Arrays a{};
  a.rows = arena.take<DeviceSampleRow>(sizes.rows);
  a.counts = arena.take<TokenCount>(sizes.counts);
  a.bias = arena.take<LogitBias>(sizes.bias);
  a.masks = arena.take<uint32_t>(checked_mul(sizes.masks, mask_words));
  a.results_begin = arena.used();
  a.results = arena.take<DeviceSampleResult>(sizes.rows);
  a.tops = arena.take<TopLogprob>(sizes.tops);
  a.results_end = arena.used();
  a.raw_of_counts = arena.take<float>(sizes.counts);
  a.raw_of_bias = arena.take<float>(sizes.bias);
  return a;
}

int64_t Sampler::bytes(const OpLimits& limits) {
  Arena plan;
  Arrays::take(plan, Sizes::most(limits), words_of_mask(limits));
  return plan.used();
}

void Sampler::reserve(const OpLimits& limits) {
  most_ = Sizes::most(limits);
  mask_words_ = words_of_mask(limits);
  memory_ = fl::DeviceBuffer(device_, bytes(limits), "sampling");
  staging_ = fl::PinnedBuffer(device_, memory_.size(), "sampling");
  sent_.reserve(static_cast<std::size_t>(limits.max_logit_rows));

  Arena plan;
  plan.take<float>(limits.vocab_size);
  SampleScratch::take(plan, limits.vocab_size);
  host_memory_ = Buffer(plan.used(), "sampling on the host");
  Arena host({host_memory_.data(), static_cast<std::size_t>(host_memory_.size())});
  logits_ = host.take<float>(limits.vocab_size);
  scratch_ = SampleScratch::take(host, limits.vocab_size);
}

// Puts row r of the call behind those of the launch that were written.
void Sampler::write(const Arrays& to, const SampleRow& row, int64_t r) {
  const bool has_mask = !row.mask.empty() || !row.allowed.empty();
  const Sizes begin = written_;
  written_.add(row, most_);
  std::ranges::copy(row.counts, to.counts + begin.counts);
  std::ranges::copy(row.bias, to.bias + begin.bias);
  if (has_mask) {
    uint32_t* mask = to.masks + begin.masks * mask_words_;
    std::fill_n(mask, mask_words_, row.allowed.empty() ? ~0u : 0u);
    for (const int32_t token : row.allowed) mask[token / 32] |= 1u << (token % 32);
    if (!row.mask.empty()) {
      for (int64_t i = 0; i < mask_words_; ++i)
        mask[i] &= i < std::ssize(row.mask) ? row.mask[static_cast<std::size_t>(i)] : 0;
    }
  }
  to.rows[begin.rows] = {.uniform = uniform(row.seed, row.sequence, row.position),
                         .row = r,
                         .temperature = row.temperature,
                         .top_p = row.top_p,
                         .min_p = row.min_p,
                         .repetition_penalty = row.repetition_penalty,
                         .frequency_penalty = row.frequency_penalty,
                         .presence_penalty = row.presence_penalty,
                         .top_k = row.top_k,
                         .count_begin = narrow<int32_t>(begin.counts),
                         .count_end = narrow<int32_t>(written_.counts),
                         .bias_begin = narrow<int32_t>(begin.bias),
                         .bias_end = narrow<int32_t>(written_.bias),
                         .mask_idx = has_mask ? narrow<int32_t>(begin.masks) : -1,
                         .wants_logprob = row.wants_logprob,
                         .num_top = row.num_top,
                         .top_begin = narrow<int32_t>(begin.tops),
                         .forced_token = row.forced_token};
}

// Device and host may draw different tokens where a sum of theirs is at the edge, so which of them samples a row is a
// matter of the row (a token has one count; only duplicates make more biases than tokens).
bool Sampler::is_for_host(const SampleRow& row, int64_t vocab_size) {
  return row.num_top > kMaxDeviceTop || std::ssize(row.counts) > vocab_size || std::ssize(row.bias) > vocab_size;
}

void Sampler::sample(fl::Stream& stream, const SampleArgs& args) {
  sent_.clear();
  Sizes sizes;
  for (int64_t r = 0; r < args.num_rows; ++r) {
    args.results[r] = {};
    const SampleRow& row = args.rows[r];
    if (is_for_host(row, args.vocab_size)) {
      sample_on_host(stream, args, r);
      continue;
    }
    if (!sizes.add(row, most_)) {
      sample_on_device(stream, args, sizes);
      sent_.clear();
      sizes = {};
      sizes.add(row, most_);
    }
    sent_.push_back(r);
  }
  if (!sent_.empty()) sample_on_device(stream, args, sizes);
}

// The rows of sent_, which need `sizes`.
void Sampler::sample_on_device(fl::Stream& stream, const SampleArgs& args, const Sizes& sizes) {
  const auto size = static_cast<std::size_t>(memory_.size());
  Arena here({staging_.data(), size});
  Arena there({memory_.data(), size});
  const Arrays host = Arrays::take(here, sizes, mask_words_);
  const Arrays device = Arrays::take(there, sizes, mask_words_);
  written_ = {};
  for (const int64_t r : sent_) write(host, args.rows[r], r);
  stream.upload(memory_.data(), staging_.data(), device.results_begin);
  cuda::sample(stream,
               {args.logits, args.stride, device.rows, device.counts, device.bias, device.masks, device.raw_of_counts,
                device.raw_of_bias, device.results, device.tops, mask_words_, narrow<int32_t>(args.vocab_size)},
               std::ssize(sent_));
  stream.download(staging_.data() + device.results_begin, memory_.data() + device.results_begin,
                  device.results_end - device.results_begin);
  stream.synchronize();
  for (std::size_t i = 0; i < sent_.size(); ++i) {
    const SampleRow& row = args.rows[sent_[i]];
    const DeviceSampleResult& found = host.results[i];
    args.results[sent_[i]] = {found.token, found.token >= 0, found.logprob, found.rank};
    const TopLogprob* top = host.tops + host.rows[i].top_begin;
    for (int32_t t = 0; t < row.num_top; ++t) {
      row.top_tokens[t] = top[t].token;
      row.top_logprobs[t] = top[t].logprob;
    }
  }
}

void Sampler::sample_on_host(fl::Stream& stream, const SampleArgs& args, int64_t r) {
  stream.download(logits_, args.logits + r * args.stride, args.vocab_size * size_of(DType::kF32));
  stream.synchronize();
  const std::span row(logits_, static_cast<std::size_t>(args.vocab_size));
  args.results[r] = sample_row(row, args.rows[r], scratch_);
}

}  // namespace fastllm::cuda
