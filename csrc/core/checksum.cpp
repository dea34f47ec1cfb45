#include "core/checksum.h"

#include <bit>
#include <cstring>

namespace fastllm {
namespace {

constexpr int kLanes = 8;
constexpr std::size_t kBlock = kLanes * sizeof(uint64_t);
constexpr uint64_t kOdd = 0x9e3779b97f4a7c15u;  // 2^64 / golden ratio

uint64_t mix(uint64_t state, uint64_t word) { return std::rotl((state ^ word) * kOdd, 29); }

}  // namespace

uint64_t checksum(std::span<const std::byte> data, uint64_t seed) {
  uint64_t lanes[kLanes];
  for (int l = 0; l < kLanes; ++l) lanes[l] = mix(seed, static_cast<uint64_t>(l) + 1);
  const auto take = [&lanes](const std::byte* block) {
    for (int l = 0; l < kLanes; ++l) {
      uint64_t word = 0;
      std::memcpy(&word, block + l * sizeof(word), sizeof(word));
      lanes[l] = mix(lanes[l], word);
    }
  };
  std::size_t at = 0;
  for (; at + kBlock <= data.size(); at += kBlock) take(data.data() + at);
  if (at < data.size()) {
    std::byte last[kBlock] = {};
    std::memcpy(last, data.data() + at, data.size() - at);
    take(last);
  }
  uint64_t sum = mix(seed, data.size());
  for (const uint64_t lane : lanes) sum = mix(sum, lane);
  return sum ^ (sum >> 32);
}

}  // namespace fastllm
