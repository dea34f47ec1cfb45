// Sampling on the device: rows with their parameters go there in one copy, tokens come back in one. Rows that want
// log-probabilities, have a forced token, or bring more penalties than there is room for, are sampled on the host from
// a copy of their logits.
#pragma once

#include <vector>

#include "core/buffer.h"
#include "cuda/fl/host.h"
#include "ops/ops.h"
#include "ops/sampling_algorithm.h"

namespace fastllm::cuda {

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
};

struct SampleParams {
  float* logits;
  int64_t stride;
  const DeviceSampleRow* rows;
  const TokenCount* counts;
  const LogitBias* bias;
  const uint32_t* masks;  // [., mask_words]: a bit for each id
  int32_t* tokens;        // [rows]; -1: the row is not finite, or nothing is left
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
  // What one call sends, here and on the device in the same order.
  struct Arrays {
    DeviceSampleRow* rows;
    TokenCount* counts;
    LogitBias* bias;
    uint32_t* masks;
    static Arrays take(Arena& arena, const OpLimits& limits);
  };
  bool add(const SampleRow& row, int64_t r);
  void sample_on_host(fl::Stream& stream, const SampleArgs& args, int64_t r);

  fl::Device& device_;
  OpLimits limits_;
  fl::DeviceBuffer memory_;  // Arrays, then tokens [R]
  Buffer staging_;
  Arrays host_{};
  std::vector<int64_t> sent_;   // rows of this call that the device samples
  std::vector<int32_t> found_;  // their tokens
  int32_t num_counts_ = 0;
  int32_t num_bias_ = 0;
  int32_t num_masks_ = 0;
  Buffer host_memory_;
  float* logits_ = nullptr;  // [V]
  SampleScratch scratch_;
};

}  // namespace fastllm::cuda
