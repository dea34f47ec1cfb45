// y = x W^T + bias with int8 or int4 weights and float activations (modes bf16 and f32 of ops/weights.h).
//
// For each scale group (whole rows: each block of 64 columns) code - zero is written as floats into pair blocks on the
// stack, 16 KB at most, which a tile of rows then multiplies as if they were weights: small integers are exact in bf16.
//
// Order of the sum: k ascending within a group from 0, as in linear_kernels.cpp, then acc = fma(sum, scale, acc) over
// ascending groups (whole rows: one sum, times the scale). So a row has the same bits in any company. Levels differ:
// the bf16 level multiplies in bf16 dot products.
#include "cpu/int_panels.h"
#include "cpu/linear_float.h"

namespace fastllm::cpu::FASTLLM_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kTileRows = 6;
constexpr int kTileHalves = 2;
#elif defined(__AVX2__)
constexpr int kTileRows = 3;
constexpr int kTileHalves = 1;
#else
constexpr int kTileRows = 2;
constexpr int kTileHalves = 1;
#endif

#if defined(__AVX512BF16__)
// Two integers of up to 9 bits and sign, exact in bf16, as one pair.
FASTLLM_INLINE void put_pair(Bf16Dot, std::byte* to, Vec even, Vec odd) {
  const __m512i low = _mm512_maskz_srli_epi32(0xffff, _mm512_castps_si512(even.v), 16);
  _mm512_storeu_si512(to, _mm512_or_si512(low, _mm512_castps_si512(odd.v)));
}
#endif
FASTLLM_INLINE void put_pair(Widened<F32>, std::byte* to, Vec even, Vec odd) {
  store(reinterpret_cast<float*>(to), even);
  store(reinterpret_cast<float*>(to + 64), odd);
}

// Column j of a quad, of 16 rows.
template <int kShift>
FASTLLM_INLINE Vec centred(Ints line, int32_t mask, Vec zero_point) {
  return sub(to_float(and_bits(shift_right<kShift>(line), mask)), zero_point);
}

// num_quads lines of one half panel into pair blocks.
template <class Dot, int kParity>
FASTLLM_INLINE void expand(Int4, const std::byte* panel, int64_t num_quads, Vec zero_point, std::byte* to) {
  constexpr int kNibble = 4 * kParity;
  for (int64_t q = 0; q < num_quads; ++q, to += 2 * Dot::kPairBytes) {
    const Ints line = line_as_ints(panel + q * Int4::kLineBytes);
    put_pair(Dot{}, to, centred<kNibble>(line, 15, zero_point), centred<kNibble + 8>(line, 15, zero_point));
    put_pair(Dot{}, to + Dot::kPairBytes, centred<kNibble + 16>(line, 15, zero_point),
             centred<kNibble + 24>(line, 15, zero_point));
  }
}
template <class Dot, int kParity>
FASTLLM_INLINE void expand(Int8, const std::byte* panel, int64_t num_quads, Vec zero_point, std::byte* to) {
  for (int64_t q = 0; q < num_quads; ++q, to += 2 * Dot::kPairBytes) {
    const Ints line = line_as_ints(panel + q * Int8::kLineBytes + 64 * kParity);
    put_pair(Dot{}, to, centred<0>(line, 255, zero_point), centred<8>(line, 255, zero_point));
    put_pair(Dot{}, to + Dot::kPairBytes, centred<16>(line, 255, zero_point), centred<24>(line, 255, zero_point));
  }
}

template <class Codes, class Dot>
struct DequantKernel {
  static constexpr int kRowTile = kTileRows;
  static constexpr int kHalves = kTileHalves;
  static constexpr int64_t kMaxPairs = 64;

  template <int kRows, int kCount, int kFirst>
  static void multiply(const LinearJob& job, int64_t row_begin, int64_t first_half) {
    using A = typename Dot::Activation;
    const IntPanels<Codes> panels(job);
    const int64_t group_pairs = job.format.group / 2;
    const int64_t num_pairs = (job.k + 1) / 2;
    const A* a = reinterpret_cast<const A*>(job.packed) + row_begin * 2 * num_pairs;

    alignas(64) std::byte expanded[kCount][kMaxPairs * Dot::kPairBytes];
    const std::byte* w[kCount];
    for (int h = 0; h < kCount; ++h) w[h] = expanded[h];
    Vec acc[kRows][kCount], sum[kRows][kCount];
    for (int m = 0; m < kRows; ++m) {
      for (int h = 0; h < kCount; ++h) acc[m][h] = sum[m][h] = zero();
    }
    for (int64_t g = 0; g < panels.num_groups; ++g) {
      Vec scales[kCount];
      for (int h = 0; h < kCount; ++h) {
        const int64_t panel = (first_half + h) / 2;
        const int parity = (kFirst + h) % 2;
        const std::byte* block = panels.first_block(panel) + g * panels.block_bytes;
        Vec zero_point = set1(static_cast<float>(Codes::kZero));
        if (const uint8_t* zeros = panels.first_zeros(panel)) {
          zero_point = to_float(load_bytes(zeros + (panels.has_row_scales ? 0 : g * kPanelRows) + 16 * parity));
        }
        if (parity == 0) {
          expand<Dot, 0>(Codes{}, block, panels.num_quads, zero_point, expanded[h]);
        } else {
          expand<Dot, 1>(Codes{}, block, panels.num_quads, zero_point, expanded[h]);
        }
        scales[h] = panels.group_scales(block, parity);
      }
      const int64_t rest = num_pairs - g * group_pairs;
      const int64_t pairs_here = rest < group_pairs ? rest : group_pairs;
      for (int64_t r = 0; r < pairs_here; ++r) Dot::step(a + r * 2 * kRows, w, r * Dot::kPairBytes, sum);
      a += pairs_here * 2 * kRows;
      if (panels.has_row_scales) continue;
      for (int m = 0; m < kRows; ++m) {
        for (int h = 0; h < kCount; ++h) {
          acc[m][h] = fma(sum[m][h], scales[h], acc[m][h]);
          sum[m][h] = zero();
        }
      }
    }
    for (int h = 0; h < kCount; ++h) {
      for (int m = 0; m < kRows; ++m) {
        panels.put_scaled(row_begin + m, first_half + h, panels.has_row_scales ? sum[m][h] : acc[m][h]);
      }
    }
  }
};

#if defined(__AVX512BF16__)
using RoundedDot = Bf16Dot;
#else
using RoundedDot = Widened<F32>;
#endif

template <class Codes, class Dot, bool kRoundsToBf16>
constexpr LinearEntry entry() {
  return {kTileRows, float_row_bytes<Dot>, pack_float_rows<Dot, kTileRows, kRoundsToBf16>,
          run<DequantKernel<Codes, Dot>>};
}

}  // namespace

extern const LinearEntry kLinearDequantKernels[4];
constinit const LinearEntry kLinearDequantKernels[4] = {
    entry<Int8, RoundedDot, true>(),
    entry<Int4, RoundedDot, true>(),
    entry<Int8, Widened<F32>, false>(),
    entry<Int4, Widened<F32>, false>(),
};

}  // namespace fastllm::cpu::FASTLLM_ISA
