// What the machine can do at most: reading memory in one stream, and multiply-adds that never leave the registers.
#include "cpu/simd.h"

namespace fastllm::cpu::FASTLLM_ISA {
namespace {

constexpr int kChains = 16;  // more than latency times throughput of any multiply-add so far

void read(const std::byte* data, int64_t bytes, float* sink) {
  const float* p = reinterpret_cast<const float*>(data);
  Vec sum[4] = {zero(), zero(), zero(), zero()};
  for (int64_t i = 0; i < bytes / 4; i += 64) {
    for (int j = 0; j < 4; ++j) sum[j] = max(sum[j], load(p + i + 16 * j));
  }
  *sink = reduce_max(max(max(sum[0], sum[1]), max(sum[2], sum[3])));
}

// Keeps the compiler from computing the loop ahead of time, or not at all.
FASTLLM_INLINE float hide(float x) {
  __asm__ volatile("" : "+r"(x));
  return x;
}

double fma_loop(int64_t num_rounds) {
#if defined(__AVX512F__) || !defined(__AVX2__)
  constexpr int kUsed = kChains;
#else
  constexpr int kUsed = 6;  // two registers each
#endif
  const Vec a = set1(hide(0.999f));
  const Vec b = set1(hide(0.001f));
  Vec acc[kUsed];
  for (int j = 0; j < kUsed; ++j) acc[j] = set1(hide(static_cast<float>(j)));
  for (int64_t i = 0; i < num_rounds; ++i) {
    for (int j = 0; j < kUsed; ++j) acc[j] = fma(acc[j], a, b);
  }
  float sum = 0.0f;
  for (int j = 0; j < kUsed; ++j) sum += reduce_add(acc[j]);
  hide(sum);
  return 2.0 * kLanes * kUsed * static_cast<double>(num_rounds);
}

#if defined(__AVX512BF16__)
double bf16_dot_loop(int64_t num_rounds) {
  const auto a = reinterpret_cast<__m512bh>(_mm512_castps_si512(set1(hide(0.001f)).v));
  const auto b = reinterpret_cast<__m512bh>(_mm512_castps_si512(set1(hide(0.002f)).v));
  Vec acc[kChains];
  for (int j = 0; j < kChains; ++j) acc[j] = set1(hide(static_cast<float>(j)));
  for (int64_t i = 0; i < num_rounds; ++i) {
    for (int j = 0; j < kChains; ++j) acc[j].v = _mm512_dpbf16_ps(acc[j].v, a, b);
  }
  float sum = 0.0f;
  for (int j = 0; j < kChains; ++j) sum += reduce_add(acc[j]);
  hide(sum);
  return 4.0 * kLanes * kChains * static_cast<double>(num_rounds);
}
constexpr auto* kBf16DotLoop = bf16_dot_loop;
#else
constexpr double (*kBf16DotLoop)(int64_t) = nullptr;
#endif

#if defined(__AVX512VNNI__)
double int8_dot_loop(int64_t num_rounds) {
  const __m512i a = _mm512_castps_si512(set1(hide(0.001f)).v);
  const __m512i b = _mm512_castps_si512(set1(hide(0.002f)).v);
  __m512i acc[kChains];
  for (int j = 0; j < kChains; ++j) acc[j] = _mm512_castps_si512(set1(hide(static_cast<float>(j))).v);
  for (int64_t i = 0; i < num_rounds; ++i) {
    for (int j = 0; j < kChains; ++j) acc[j] = _mm512_dpbusd_epi32(acc[j], a, b);
  }
  float sum = 0.0f;
  for (int j = 0; j < kChains; ++j) sum += reduce_add({_mm512_castsi512_ps(acc[j])});
  hide(sum);
  return 8.0 * kLanes * kChains * static_cast<double>(num_rounds);
}
constexpr auto* kInt8DotLoop = int8_dot_loop;
#elif defined(__AVX2__)
// Products summed in pairs of 16 bits, as int_dot.h has them.
double int8_dot_loop(int64_t num_rounds) {
#if defined(__AVX512F__)
  using Register = __m512i;
  const auto dot = [](Register acc, Register a, Register b) {
    return _mm512_add_epi16(acc, _mm512_maddubs_epi16(a, b));
  };
#else
  using Register = __m256i;
  const auto dot = [](Register acc, Register a, Register b) {
    return _mm256_add_epi16(acc, _mm256_maddubs_epi16(a, b));
  };
#endif
  constexpr int kUsed = 8;  // only the addition waits for the one before it
  Register a = {}, b = {};
  Register acc[kUsed] = {};
  for (int64_t i = 0; i < num_rounds; ++i) {
    for (int j = 0; j < kUsed; ++j) {
      __asm__ volatile("" : "+x"(a), "+x"(b));  // other numbers, as far as the compiler knows
      acc[j] = dot(acc[j], a, b);
    }
  }
  for (int j = 1; j < kUsed; ++j) acc[0] ^= acc[j];
  __asm__ volatile("" : : "x"(acc[0]));
  return 2.0 * sizeof(Register) * kUsed * static_cast<double>(num_rounds);
}
constexpr auto* kInt8DotLoop = int8_dot_loop;
#else
constexpr double (*kInt8DotLoop)(int64_t) = nullptr;
#endif

}  // namespace

extern const ProbeKernels kProbeKernels;
constinit const ProbeKernels kProbeKernels = {read, fma_loop, kBf16DotLoop, kInt8DotLoop};

}  // namespace fastllm::cpu::FASTLLM_ISA
