// A 64-bit checksum at the speed of reading: eight lanes of multiply and rotate over 64-byte blocks. Finds what disks
// and copies do to files; no protection from somebody who means harm.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace fastllm {

uint64_t checksum(std::span<const std::byte> data, uint64_t seed = 0);

}  // namespace fastllm
