#include "core/cpu_info.h"

#include <string>

#include "core/error.h"

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#endif

namespace fastllm {
namespace {

constexpr CpuIsa kAllIsas[] = {CpuIsa::kScalar, CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kVnni, CpuIsa::kBf16};

#if defined(__x86_64__) || defined(__i386__)

constexpr bool has_bits(uint32_t x, uint32_t bits) { return (x & bits) == bits; }
constexpr uint32_t bit(int i) { return uint32_t{1} << i; }

struct Registers {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Registers cpuid(uint32_t leaf, uint32_t subleaf) {
  Registers r;
  __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);  // an unknown leaf leaves zeros
  return r;
}

// XCR0: which register files the operating system saves when it switches threads. As bytes, because the intrinsic
// would need -mxsave for this file.
uint32_t read_xcr0() {
  uint32_t low = 0;
  uint32_t high = 0;
  __asm__ volatile(".byte 0x0f, 0x01, 0xd0" : "=a"(low), "=d"(high) : "c"(0));
  return low;
}

CpuIsa detect() {
  constexpr uint32_t kFma = bit(12), kOsxsave = bit(27), kAvx = bit(28), kF16c = bit(29);  // leaf 1, ecx
  const Registers basic = cpuid(1, 0);
  if (!has_bits(basic.ecx, kFma | kOsxsave | kAvx | kF16c)) return CpuIsa::kScalar;
  const uint32_t saved = read_xcr0();
  constexpr uint32_t kSseAvxState = 0x06;  // xmm, upper halves of ymm
  constexpr uint32_t kAvx512State = 0xe0;  // mask registers, upper halves of zmm0-15, zmm16-31
  const Registers extended = cpuid(7, 0);
  constexpr uint32_t kAvx2Bit = bit(5);  // leaf 7.0, ebx
  if (!has_bits(saved, kSseAvxState) || !has_bits(extended.ebx, kAvx2Bit)) return CpuIsa::kScalar;
  constexpr uint32_t kAvx512Bits = bit(16) | bit(17) | bit(30) | bit(31);  // F, DQ, BW, VL
  if (!has_bits(saved, kAvx512State) || !has_bits(extended.ebx, kAvx512Bits)) return CpuIsa::kAvx2;
  if (!has_bits(extended.ecx, bit(11))) return CpuIsa::kAvx512;  // leaf 7.0, ecx: AVX512_VNNI
  // Leaf 7.0, eax: the highest subleaf. 7.1, eax: AVX512_BF16.
  if (extended.eax < 1 || !has_bits(cpuid(7, 1).eax, bit(5))) return CpuIsa::kVnni;
  return CpuIsa::kBf16;
}

#else

CpuIsa detect() { return CpuIsa::kScalar; }

#endif

std::string names_up_to(CpuIsa last) {
  std::string names;
  for (const CpuIsa isa : kAllIsas) {
    if (isa > last) break;
    names += (names.empty() ? "" : ", ");
    names += name_of(isa);
  }
  return names;
}

}  // namespace

const char* name_of(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kScalar:
      return "scalar";
    case CpuIsa::kAvx2:
      return "avx2";
    case CpuIsa::kAvx512:
      return "avx512";
    case CpuIsa::kVnni:
      return "vnni";
    case CpuIsa::kBf16:
      return "bf16";
  }
  return "?";
}

CpuIsa detect_isa() {
  static const CpuIsa detected = detect();
  return detected;
}

std::vector<CpuIsa> supported_isas() {
  std::vector<CpuIsa> isas;
  for (const CpuIsa isa : kAllIsas) {
    if (isa <= detect_isa()) isas.push_back(isa);
  }
  return isas;
}

CpuIsa choose_isa(const char* forced) {
  constexpr std::string_view kPrefix = "cpu:";
  std::string_view name = forced == nullptr ? "" : forced;
  if (name.starts_with(kPrefix)) name.remove_prefix(kPrefix.size());
  if (name.empty()) return detect_isa();
  for (const CpuIsa isa : kAllIsas) {
    if (name != name_of(isa)) continue;
    if (isa <= detect_isa()) return isa;
    fail(ErrorKind::kDevice, "cpu instruction set \"", name, "\" was asked for; this machine has ",
         names_up_to(detect_isa()));
  }
  fail(ErrorKind::kDevice, "cpu instruction set \"", name, "\" is not known (", names_up_to(CpuIsa::kBf16),
       " are); this machine has ", names_up_to(detect_isa()));
}

}  // namespace fastllm
