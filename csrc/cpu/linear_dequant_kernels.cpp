// y = x W^T + bias with int8 or int4 weights and float activations (modes bf16 and f32 of ops/weights.h).
//
// For each scale group (whole rows: each block of 64 columns) code - zero is written as floats into pair blocks on the
// stack, 16 KB at most, which all tiles of rows then multiply as if they were weights: small integers are exact in
// bf16. What each row has so far waits on the stack too.
//
// Order of the sum: k ascending within a group from 0, as in linear_kernels.cpp, then acc = fma(sum, scale, acc) over
// ascending groups (whole rows: one sum, times the scale). So a row has the same bits in any company. Levels differ:
// the bf16 level multiplies in bf16 dot products.
#include "cpu/int_panels.h"
#include "cpu/linear_float.h"

namespace fastllm::cpu::FASTLLM_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kTileRows = 12;
constexpr int kTileHalves = 2;
#elif defined(__AVX2__)
constexpr int kTileRows = 6;
constexpr int kTileHalves = 1;
#else
constexpr int kTileRows = 4;
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
  using A = typename Dot::Activation;
  static constexpr int kRowTile = kTileRows;
  static constexpr int64_t kMaxPairs = 64;

  // One group of kTileHalves half panels, written out, and what its products are added to.
  struct Group {
    alignas(64) std::byte expanded[kTileHalves][kMaxPairs * Dot::kPairBytes];
    alignas(64) float sums[kGroupRows][kTileHalves][kLanes];
    Vec scales[kTileHalves];
    bool has_row_scales;
    bool is_first;
    const A* a;  // first row, first group
    int64_t num_pairs, begin, end;
  };

  static FASTLLM_INLINE void expand_group(const IntPanels<Codes>& panels, int64_t g, int64_t first_half, Group& to) {
    for (int h = 0; h < kTileHalves; ++h) {
      const int64_t panel = (first_half + h) / 2;
      const int64_t parity = (first_half + h) % 2;
      const std::byte* block = panels.first_block(panel) + g * panels.block_bytes;
      Vec zero_point = set1(static_cast<float>(Codes::kZero));
      if (const uint8_t* zeros = panels.first_zeros(panel)) {
        zero_point = to_float(load_bytes(zeros + (panels.has_row_scales ? 0 : g * kPanelRows) + 16 * parity));
      }
      if (parity == 0) {
        expand<Dot, 0>(Codes{}, block, panels.num_quads, zero_point, to.expanded[h]);
      } else {
        expand<Dot, 1>(Codes{}, block, panels.num_quads, zero_point, to.expanded[h]);
      }
      to.scales[h] = panels.group_scales(block, static_cast<int>(parity));
    }
  }

  template <int kRows, int kHalves, int>
  static void multiply(Group& group, int64_t row_begin, int64_t) {
    const A* a = group.a + row_begin * 2 * group.num_pairs + group.begin * 2 * kRows;
    const std::byte* w[kHalves];
    for (int h = 0; h < kHalves; ++h) w[h] = group.expanded[h];
    Vec sum[kRows][kHalves];
    const bool continues = group.has_row_scales && !group.is_first;
    for (int m = 0; m < kRows; ++m) {
      for (int h = 0; h < kHalves; ++h) sum[m][h] = continues ? load(group.sums[row_begin + m][h]) : zero();
    }
    for (int64_t r = 0; r < group.end - group.begin; ++r) Dot::step(a + r * 2 * kRows, w, r * Dot::kPairBytes, sum);
    for (int m = 0; m < kRows; ++m) {
      for (int h = 0; h < kHalves; ++h) {
        float* to = group.sums[row_begin + m][h];
        if (!group.has_row_scales) {
          sum[m][h] = fma(sum[m][h], group.scales[h], group.is_first ? zero() : load(to));
        }
        store(to, sum[m][h]);
      }
    }
  }

  static void run(const LinearJob& job) {
    const IntPanels<Codes> panels(job);
    const int64_t group_pairs = job.format.group / 2;
    const int64_t num_tiles = (job.num_rows + kTileRows - 1) / kTileRows;
    Group group;
    group.has_row_scales = panels.has_row_scales;
    group.a = reinterpret_cast<const A*>(job.packed);
    group.num_pairs = (job.k + 1) / 2;
    for (int64_t half = 0; half < 2 * job.num_panels; half += kTileHalves) {
      for (int64_t g = 0; g < panels.num_groups; ++g) {
        expand_group(panels, g, half, group);
        group.is_first = g == 0;
        group.begin = g * group_pairs;
        const int64_t end = group.begin + group_pairs;
        group.end = end < group.num_pairs ? end : group.num_pairs;
        for (int64_t t = 0; t < num_tiles; ++t) {
          const Tile tile = tile_at<kTileRows>(job.num_rows, t);
          multiply_rows<DequantKernel, kTileHalves, 0>(tile.rows, group, tile.begin, half);
        }
      }
      for (int64_t row = 0; row < job.num_rows; ++row) {
        for (int h = 0; h < kTileHalves; ++h) panels.put_scaled(row, half + h, load(group.sums[row][h]));
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
          DequantKernel<Codes, Dot>::run};
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
