// Words for the conformance cases, the same on every machine.
#pragma once

#include <bit>
#include <vector>

#include "conformance_cases.h"
#include "core/dtype.h"
#include "core/random.h"

namespace fl::conformance {

inline uint32_t input_word(Input kind, uint32_t i, uint64_t seed) {
  const auto bits = fastllm::philox(seed, {i, static_cast<uint32_t>(kind), 0, 0});
  const auto small = [&](uint32_t word) { return static_cast<float>(static_cast<int32_t>(word)) * 0x1p-30f; };
  switch (kind) {
    case Input::kWords:
      return bits[0];
    case Input::kFloats:
      if (i % 16 < 8) return std::bit_cast<uint32_t>(small(bits[0]) * 8.0f);
      if (i % 16 < 12) return bits[0] & 0xbfffffffu;  // tiny and subnormal ones too
      if (i % 16 == 12) return bits[0];               // NaN now and then
      return i % 16 == 13 ? 0x7f800000u : i % 16 == 14 ? 0x80000000u : 0x7fc00000u;
    case Input::kHalves:
      return fastllm::to_f16(small(bits[0])).bits | static_cast<uint32_t>(fastllm::to_f16(small(bits[1])).bits) << 16;
    case Input::kBf16s:
      return fastllm::to_bf16(small(bits[0])).bits | static_cast<uint32_t>(fastllm::to_bf16(small(bits[1])).bits) << 16;
  }
  return 0;
}

inline std::vector<uint32_t> inputs(Input kind, uint64_t seed) {
  std::vector<uint32_t> words;
  for (uint32_t i = 0; i < kThreads * kWordsIn; ++i) words.push_back(input_word(kind, i, seed));
  return words;
}

}  // namespace fl::conformance
