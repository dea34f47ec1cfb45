// Which instruction sets this machine and its operating system offer, as the levels that kernels are compiled for.
// Each level includes those before it. On a processor that is not x86 there is only kScalar.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace fastllm {

enum class CpuIsa : uint8_t {
  kScalar,  // portable C++
  kAvx2,    // AVX2, FMA, F16C
  kAvx512,  // AVX-512 F, BW, VL, DQ
  kVnni,    // adds AVX512_VNNI
  kBf16,    // adds AVX512_BF16
};

const char* name_of(CpuIsa isa);  // "scalar", "avx2", "avx512", "vnni", "bf16"

// The highest level that the processor has and whose registers the operating system saves.
CpuIsa detect_isa();

// kScalar .. detect_isa(), ascending.
std::vector<CpuIsa> supported_isas();

// `forced` is the value of FASTLLM_CPU_ISA or of a device string, with or without its "cpu:". nullptr or "": the best
// one. Throws kDevice for a level that is unknown or that this machine lacks, naming those that it has.
CpuIsa choose_isa(const char* forced);

}  // namespace fastllm
