// The passes over a vocabulary that sampling needs (ops/sampling_scans.h): 16 logits at a time, each
// pass reads V floats once.
#include "cpu/simd_math.h"

namespace fastllm::cpu::FASTLLM_ISA {
namespace {

// NaN if a logit is NaN or +infinity, else the largest; -infinity if there is no other.
float largest(const float* x, int64_t n) {
  Vec top = set1(-kInfinity);
  Vec poison = zero();  // x * 0 is NaN for NaN and both infinities; -infinity is replaced first
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vec v = n - i >= kLanes ? load(x + i) : select(lanes(0, n - i), load_n(x + i, n - i), set1(-kInfinity));
    top = max(top, v);
    poison = fma(max(set1(0.0f), v), zero(), poison);
  }
  return reduce_max(top) + reduce_add(poison);
}

int64_t collect(const float* x, int64_t* begin, int64_t n, float threshold, int32_t* ids, int64_t capacity) {
  int64_t count = 0;
  int64_t i = *begin;
  for (; i < n && count + kLanes <= capacity; i += kLanes) {
    const Vec v = load_n(x + i, n - i);
    uint32_t hits = ~bits(less(v, set1(threshold))) & bits(lanes(0, n - i));
    for (; hits != 0; hits &= hits - 1) ids[count++] = static_cast<int32_t>(i + __builtin_ctz(hits));
  }
  *begin = i;
  return count;
}

// The exponent is e + low, so that no more is lost than in the polynomial: low is what the subtraction (Knuth's
// two-sum), the product and the reciprocal have rounded away, and exp(e + low) = exp(e) + low * exp(e) + ...
void exp_sums(const float* x, int64_t n, float top, float temperature, double* sums) {
  const double inverse = 1.0 / static_cast<double>(temperature);
  const Vec offset = set1(top);
  const Vec lowest = set1(top + kLowestExponent * temperature);  // below, exp is 0 as far as a sum is concerned
  const Vec scale = set1(static_cast<float>(inverse));
  const Vec scale_low = set1(static_cast<float>(inverse - static_cast<double>(static_cast<float>(inverse))));
  for (int64_t begin = 0; begin < n; begin += kSampleBlock) {
    const int64_t end = n - begin < kSampleBlock ? n : begin + kSampleBlock;
    Doubles sum = zero_doubles();
    for (int64_t i = begin; i < end; i += kLanes) {
      const Vec v = max(lowest, load_n(x + i, end - i));
      const Vec d = sub(v, offset);
      const Vec shift = sub(d, v);
      const Vec d_low = sub(sub(v, sub(d, shift)), add(offset, shift));
      const Vec e = mul(d, scale);
      const Vec low = add(fma(d, scale, sub(zero(), e)), fma(d_low, scale, mul(d, scale_low)));
      const Vec rounded = exp_in_range(max(set1(kLowestExponent), e));
      const Vec weight = fma(rounded, low, rounded);
      sum = add(sum, end - i >= kLanes ? weight : select(lanes(0, end - i), weight, zero()));
    }
    *sums++ = reduce_add(sum);
  }
}

int64_t count_before(const float* x, int64_t n, float logit, int64_t id) {
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += kLanes) {
    const Vec v = load_n(x + i, n - i);
    const uint32_t above = bits(less(set1(logit), v));
    const uint32_t equal = ~bits(less(v, set1(logit))) & bits(lanes(0, id - i));
    count += __builtin_popcount((above | equal) & bits(lanes(0, n - i)));
  }
  return count;
}

}  // namespace

extern const SampleScans kSamplingKernels;
constinit const SampleScans kSamplingKernels = {largest, collect, exp_sums, count_before};

}  // namespace fastllm::cpu::FASTLLM_ISA
