// One kernel per wrapper of fl/gpu.h, each run by one block of 64 threads: words in, words out.
#pragma once

#include <cstdint>
#include <span>

#include "cuda/fl/host.h"

namespace fl::conformance {

constexpr uint32_t kThreads = 64;
constexpr uint32_t kWordsIn = 8;  // of a thread
constexpr uint32_t kWordsOut = 8;

enum class Compare : uint8_t {
  kBits,  // data movement, integers, conversions
  // Words are floats:
  kApprox,    // approximate functions: within 1e-6 of the number, however small it is
  kOrderOne,  // numbers up to 1: within 1e-6
  kMmaFp8,    // tensor cores, e4m3: 32 products below 4, each aligned to the largest with 13 bits by some chips
  kMmaSum,    // tensor cores: 16 products whose sizes add up to about 16, within 4e-6 of that (some chips truncate)
};
enum class Input : uint8_t {
  kWords,   // random bits
  kFloats,  // normal numbers, zeros, infinities, NaN, subnormals
  kHalves,  // pairs of small f16
  kBf16s,   // pairs of small bf16
};

struct Case {
  const char* name;
  Input input;
  Compare compare;
  void (*run)(Stream& stream, const uint32_t* in, uint32_t* out);
};

std::span<const Case> cases();

}  // namespace fl::conformance
