#include "random_weight.h"

#include <cstring>
#include <random>

#include "core/checked.h"

namespace fastllm::bench {

WeightDesc describe(const Format& format, int64_t n, int64_t k, int64_t num_experts) {
  WeightDesc desc;
  desc.n = n;
  desc.k = k;
  desc.num_experts = num_experts;
  desc.format = format.format;
  desc.group = format.group;
  desc.scale_dtype = format.group == 0 ? DType::kF32 : DType::kF16;
  desc.act = format.act;
  desc.has_zeros = format.has_zeros;
  return desc;
}

std::vector<float> random_floats(int64_t count) {
  std::mt19937 random(1);
  std::vector<float> out(static_cast<std::size_t>(count));
  for (float& x : out) {
    x = (static_cast<float>(random() >> 8) + static_cast<float>(random() >> 8)) * 0x1p-23f - 2.0f;
  }
  return out;
}

RandomWeight::RandomWeight(Backend& backend, const WeightDesc& desc, int64_t copies)
    : bytes_(round_up(backend.packed_bytes(desc), 64)), memory_(checked_mul(bytes_, copies), "benchmark weight") {
  for (int64_t i = 0; i < copies; ++i) copies_.push_back({desc, memory_.data() + i * bytes_});
  constexpr int64_t kRows = 32;
  std::mt19937 random(2);
  std::vector<uint8_t> codes(static_cast<std::size_t>(kRows * desc.k));
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random() & (desc.format == WeightFormat::kInt4 ? 15 : 255));
  const std::vector<float> scales(static_cast<std::size_t>(kRows * desc.groups()), 0x1p-7f);
  const std::vector<uint8_t> zeros(scales.size(), 7);
  const std::vector<float> floats = random_floats(kRows * desc.k);
  for (int64_t expert = 0; expert < desc.num_experts; ++expert) {
    for (int64_t row = 0; row < desc.n; row += kRows) {
      const int64_t rows = std::min(kRows, desc.n - row);
      if (is_integer(desc.format)) {
        backend.pack_codes(copies_[0],
                           {codes.data(), scales.data(), desc.has_zeros ? zeros.data() : nullptr, row, rows, expert});
      } else {
        backend.pack(copies_[0], {floats.data(), DType::kF32, desc.k, 1, row, rows, expert});
      }
    }
  }
  for (int64_t i = 1; i < copies; ++i)
    std::memcpy(copies_[static_cast<std::size_t>(i)].data, copies_[0].data, static_cast<std::size_t>(bytes_));
}

}  // namespace fastllm::bench
