// Sampling on the device: rows with their parameters go there in one copy; tokens and log-probabilities come back in
// one. Where the penalties of all rows are more than there is room for, the rest follows in another launch. Rows that
// want more than kMaxDeviceTop of the most likely tokens are sampled on the host from a copy of their logits.
#pragma once

#include <vector>

#include "core/buffer.h"
#include "cuda/fl/host.h"
#include "ops/ops.h"
#include "ops/sampling_algorithm.h"

namespace fastllm::cuda {

// The most likely tokens of a row that the device can report.
constexpr int32_t kMaxDeviceTop = 32;

// SampleRow as the kernel reads it.
struct DeviceSampleRow {
  double uniform;  // the draw, in [0, 1)
  int64_t row;     // of the logits
  float temperature, top_p, min_p;
  float repetition_penalty, frequency_penalty, presence_penalty;
  int32_t top_k;
  int32_t count_begin, count_end;
  int32_t bias_begin, bias_end;
  int32_t mask_idx;  // -1: all ids are allowed
  int32_t wants_logprob;
  int32_t num_top, top_begin;  // its places in SampleParams::tops
  int32_t forced_token;        // -1: draw one
};
struct DeviceSampleResult {
  int32_t token;  // -1: the row is not finite, or nothing is left
  float logprob;
  int32_t rank;
};
struct TopLogprob {
  int32_t token;
  float logprob;
};

struct SampleParams {
  float* logits;  // overwritten, and as they were when the kernel ends
  int64_t stride;
  const DeviceSampleRow* rows;
  const TokenCount* counts;
  const LogitBias* bias;
  const uint32_t* masks;  // [., mask_words]: a bit for each id
  float* raw_of_counts;   // the logits that penalties change, and those that biases change
  float* raw_of_bias;
  DeviceSampleResult* results;  // [rows]
  TopLogprob* tops;             // in descending order of each row; token -1, -infinity where the row is not finite
  int64_t mask_words;
  int32_t vocab_size;
};

void sample(fl::Stream& stream, const SampleParams& params, int64_t num_rows);  // small/sample.cu

class Sampler {
 public:
  explicit Sampler(fl::Device& device) : device_(device) {}

  [[nodiscard]] static int64_t bytes(const OpLimits& limits);  // on the device
  void reserve(const OpLimits& limits);
  void sample(fl::Stream& stream, const SampleArgs& args);

 private:
  // Entries of the arrays of one launch.
  struct Sizes {
    int64_t rows = 0, counts = 0, bias = 0, masks = 0, tops = 0;
    static Sizes most(const OpLimits& limits);
    bool add(const SampleRow& row, const Sizes& most);
  };
  // The arrays of one launch, on the device and, but for the raw logits, at the same offsets here.
  struct Arrays {
    DeviceSampleRow* rows;
    TokenCount* counts;
    LogitBias* bias;
    uint32_t* masks;
    DeviceSampleResult* results;
    TopLogprob* tops;
    int64_t results_begin, results_end;  // bytes: what is before them is sent, they come back
    float* raw_of_counts;
    float* raw_of_bias;
    static Arrays take(Arena& arena, const Sizes& sizes, int64_t mask_words);
  };
  static bool is_for_host(const SampleRow& row, int64_t vocab_size);
  void write(const Arrays& to, const SampleRow& row, int64_t r);
  void sample_on_device(fl::Stream& stream, const SampleArgs& args, const Sizes& sizes);
  void sample_on_host(fl::Stream& stream, const SampleArgs& args, int64_t r);

  fl::Device& device_;
  Sizes most_;
  int64_t mask_words_ = 0;
  fl::DeviceBuffer memory_;
  fl::PinnedBuffer staging_;
  std::vector<int64_t> sent_;  // rows of this launch
  Sizes written_;
  Buffer host_memory_;
  float* logits_ = nullptr;  // [V]
  SampleScratch scratch_;
};

}  // namespace fastllm::cuda
