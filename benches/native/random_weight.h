// Weights of a format with random contents, packed for a backend.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/buffer.h"
#include "ops/ops.h"

namespace fastllm::bench {

struct Format {
  std::string name;
  WeightFormat format = WeightFormat::kBF16;
  int64_t group = 0;
  ActMode act = ActMode::kA8R;
  bool has_zeros = false;
};

WeightDesc describe(const Format& format, int64_t n, int64_t k, int64_t num_experts = 1);

// `copies` equal weights, one after the other, so that a benchmark can walk through more memory than the caches hold.
class RandomWeight {
 public:
  RandomWeight(Backend& backend, const WeightDesc& desc, int64_t copies);
  [[nodiscard]] const PackedWeight& copy(int64_t i) const { return copies_[static_cast<std::size_t>(i)]; }
  [[nodiscard]] int64_t size() const { return static_cast<int64_t>(copies_.size()); }
  [[nodiscard]] int64_t bytes() const { return bytes_; }  // of one copy

 private:
  int64_t bytes_ = 0;
  Buffer memory_;
  std::vector<PackedWeight> copies_;
};

// Roughly normal numbers.
std::vector<float> random_floats(int64_t count);

}  // namespace fastllm::bench
