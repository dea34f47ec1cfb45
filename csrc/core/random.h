// Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
// A draw is a pure function of (seed, sequence, position, lane), so it is the same in any batch.
#pragma once

#include <array>
#include <cstdint>

namespace fastllm {

constexpr std::array<uint32_t, 4> philox(uint64_t key, std::array<uint32_t, 4> counter) {
  uint32_t k0 = static_cast<uint32_t>(key);
  uint32_t k1 = static_cast<uint32_t>(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(p1 >> 32) ^ counter[1] ^ k0, static_cast<uint32_t>(p1),
               static_cast<uint32_t>(p0 >> 32) ^ counter[3] ^ k1, static_cast<uint32_t>(p0)};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return counter;
}

// Uniform in [0, 1) with 53 bits. `sequence` is the index of the sequence within its request (0 .. n-1),
// `position` the position of the token that is drawn.
constexpr double uniform(uint64_t seed, uint64_t sequence, uint64_t position) {
  const auto bits = philox(seed, {static_cast<uint32_t>(position), static_cast<uint32_t>(position >> 32),
                                  static_cast<uint32_t>(sequence), static_cast<uint32_t>(sequence >> 32)});
  const uint64_t mantissa = ((uint64_t{bits[0]} << 32) | bits[1]) >> 11;
  return static_cast<double>(mantissa) * 0x1p-53;
}

}  // namespace fastllm
