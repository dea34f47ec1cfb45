#include "cuda/sampler.h"

#include <algorithm>

#include "core/checked.h"
#include "core/random.h"

namespace fastllm::cuda {
namespace {

// Room for penalties, in entries per row of the largest step. All rows share it.
constexpr int64_t kCountsPerRow = 1024;
constexpr int64_t kBiasPerRow = 512;

int64_t mask_words(const OpLimits& limits) { return ceil_div(limits.vocab_size, 32); }

}  // namespace

Sampler::Arrays Sampler::Arrays::take(Arena& arena, const OpLimits& limits) {
  const int64_t rows = limits.max_logit_rows;
  return {arena.take<DeviceSampleRow>(rows), arena.take<TokenCount>(checked_mul(rows, kCountsPerRow)),
          arena.take<LogitBias>(checked_mul(rows, kBiasPerRow)),
          arena.take<uint32_t>(checked_mul(rows, mask_words(limits)))};
}

int64_t Sampler::bytes(const OpLimits& limits) {
  Arena plan;
  Arrays::take(plan, limits);
  plan.take<int32_t>(limits.max_logit_rows);
  return plan.used();
}

void Sampler::reserve(const OpLimits& limits) {
  limits_ = limits;
  memory_ = fl::DeviceBuffer(device_, bytes(limits), "sampling");
  staging_ = Buffer(memory_.size(), "sampling");
  Arena staging({staging_.data(), static_cast<std::size_t>(staging_.size())});
  host_ = Arrays::take(staging, limits);
  sent_.reserve(static_cast<std::size_t>(limits.max_logit_rows));
  found_.reserve(sent_.capacity());

  Arena plan;
  plan.take<float>(limits.vocab_size);
  SampleScratch::take(plan, limits.vocab_size);
  host_memory_ = Buffer(plan.used(), "sampling on the host");
  Arena host({host_memory_.data(), static_cast<std::size_t>(host_memory_.size())});
  logits_ = host.take<float>(limits.vocab_size);
  scratch_ = SampleScratch::take(host, limits.vocab_size);
}

// Puts the row among those of the device; false if it belongs to the host.
bool Sampler::add(const SampleRow& row, int64_t r) {
  if (row.wants_logprob || row.num_top > 0 || row.forced_token >= 0) return false;
  const int64_t rows = limits_.max_logit_rows;
  if (num_counts_ + std::ssize(row.counts) > rows * kCountsPerRow) return false;
  if (num_bias_ + std::ssize(row.bias) > rows * kBiasPerRow) return false;
  DeviceSampleRow& to = host_.rows[sent_.size()];
  to = {.uniform = uniform(row.seed, row.sequence, row.position),
        .row = r,
        .temperature = row.temperature,
        .top_p = row.top_p,
        .min_p = row.min_p,
        .repetition_penalty = row.repetition_penalty,
        .frequency_penalty = row.frequency_penalty,
        .presence_penalty = row.presence_penalty,
        .top_k = row.top_k,
        .count_begin = num_counts_,
        .count_end = num_counts_ + static_cast<int32_t>(row.counts.size()),
        .bias_begin = num_bias_,
        .bias_end = num_bias_ + static_cast<int32_t>(row.bias.size()),
        .mask_idx = -1};
  std::ranges::copy(row.counts, host_.counts + num_counts_);
  std::ranges::copy(row.bias, host_.bias + num_bias_);
  num_counts_ = to.count_end;
  num_bias_ = to.bias_end;
  if (!row.mask.empty() || !row.allowed.empty()) {
    const int64_t words = mask_words(limits_);
    uint32_t* mask = host_.masks + num_masks_ * words;
    std::fill_n(mask, words, row.allowed.empty() ? ~0u : 0u);
    for (const int32_t token : row.allowed) mask[token / 32] |= 1u << (token % 32);
    if (!row.mask.empty()) {
      for (int64_t i = 0; i < words; ++i)
        mask[i] &= i < std::ssize(row.mask) ? row.mask[static_cast<std::size_t>(i)] : 0;
    }
    to.mask_idx = num_masks_++;
  }
  sent_.push_back(r);
  return true;
}

void Sampler::sample(fl::Stream& stream, const SampleArgs& args) {
  sent_.clear();
  num_counts_ = num_bias_ = num_masks_ = 0;
  for (int64_t r = 0; r < args.num_rows; ++r) {
    args.results[r] = {};
    if (!add(args.rows[r], r)) sample_on_host(stream, args, r);
  }
  if (sent_.empty()) return;

  Arena arena({memory_.data(), static_cast<std::size_t>(memory_.size())});
  const Arrays device = Arrays::take(arena, limits_);
  auto* tokens = arena.take<int32_t>(limits_.max_logit_rows);
  const auto send = [&]<class T>(T* to, const T* from, int64_t count) {
    if (count > 0) stream.upload(to, from, count * static_cast<int64_t>(sizeof(T)));
  };
  send(device.rows, host_.rows, std::ssize(sent_));
  send(device.counts, host_.counts, num_counts_);
  send(device.bias, host_.bias, num_bias_);
  send(device.masks, host_.masks, num_masks_ * mask_words(limits_));
  cuda::sample(stream,
               {args.logits, args.stride, device.rows, device.counts, device.bias, device.masks, tokens,
                mask_words(limits_), narrow<int32_t>(args.vocab_size)},
               std::ssize(sent_));
  found_.resize(sent_.size());
  stream.download(found_.data(), tokens, std::ssize(found_) * static_cast<int64_t>(sizeof(int32_t)));
  stream.synchronize();
  for (std::size_t i = 0; i < sent_.size(); ++i) {
    SampleResult& result = args.results[sent_[i]];
    result.token = found_[i];
    result.is_finite = found_[i] >= 0;
  }
}

void Sampler::sample_on_host(fl::Stream& stream, const SampleArgs& args, int64_t r) {
  stream.download(logits_, args.logits + r * args.stride, args.vocab_size * size_of(DType::kF32));
  stream.synchronize();
  const std::span row(logits_, static_cast<std::size_t>(args.vocab_size));
  args.results[r] = sample_row(row, args.rows[r], scratch_);
}

}  // namespace fastllm::cuda
