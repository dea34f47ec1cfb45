// y = x W^T + bias with int8 or int4 weights and activations quantized to signed bytes (definition: ops/weights.h).
//
// W lies in panels of 32 output rows, one block per activation group (kernels.h). Activations lie in tiles of up to
// row_tile rows; per group a tile has [plane][quad][row][4] signed bytes, then one GroupOfRow for each row.
//
// For each group the tile's sums start at -zero * sum(a), so that zero points cost nothing in the loop; dot products
// are exact; one float multiply-add per output and group follows, groups ascending. Exact sums can be formed in any
// order, and the float steps have one: the bits are the same for any number of rows, tile, thread and level. High
// nibbles are multiplied where they lie (16 * code): the sum is 16 times too large and the scale is divided by 16,
// which changes no bit.
#include "cpu/int_dot.h"
#include "cpu/linear_tile.h"

namespace fastllm::cpu::FASTLLM_ISA {
namespace {

// Of one row and activation group. The second plane is the low byte (kTwo) or the remainder (kResidual).
struct GroupOfRow {
  float scale;
  float residual_scale;  // 0: the row has no outlier here
  int32_t minus_sum;     // - sum of the first plane
  int32_t minus_sum2;
  int32_t tile_has_residual;  // of any row of the tile; set in the first row
};

FASTLLM_INLINE int64_t num_planes(const IntFormat& f) { return f.planes == Planes::kOne ? 1 : 2; }
FASTLLM_INLINE int64_t group_row_bytes(const IntFormat& f) {
  return num_planes(f) * f.group + static_cast<int64_t>(sizeof(GroupOfRow));
}
int64_t packed_row_bytes(int64_t k, const IntFormat& f) { return (k + f.group - 1) / f.group * group_row_bytes(f); }

// Rounds to the nearest integer, ties to even, for |x| < 2^22.
FASTLLM_INLINE Vec round_to_int(Vec x) {
  const Vec magic = set1(12582912.0f);  // 1.5 * 2^23
  return sub(add(x, magic), magic);
}
FASTLLM_INLINE int32_t sum_of(Vec x) { return static_cast<int32_t>(reduce_add(x)); }

// 16 codes to their quads, `stride` bytes apart.
FASTLLM_INLINE void put_quads(std::byte* to, int64_t stride, Vec codes) {
  int8_t bytes[16];
  store_bytes(bytes, codes);
  for (int i = 0; i < 4; ++i) __builtin_memcpy(to + i * stride, bytes + 4 * i, 4);
}

// `count` <= group activations of one row. plane: the row's first quad; quads and planes are that far apart.
FASTLLM_INLINE GroupOfRow quantize(const float* x, int64_t count, const IntFormat& f, std::byte* plane,
                                   int64_t quad_stride, int64_t plane_stride) {
  Vec top = zero(), sum = zero(), poison = zero();
  for (int64_t k = 0; k < f.group; k += kLanes) {
    const Vec v = load_n(x + k, count - k);
    const Vec magnitude = max(sub(zero(), v), v);
    top = max(magnitude, top);
    sum = add(sum, magnitude);
    poison = fma(v, zero(), poison);
  }
  GroupOfRow out{};
  const bool is_finite = reduce_add(poison) == 0.0f;  // 0 * infinity is NaN too
  const float largest = f.planes == Planes::kTwo ? 16256.0f : 127.0f;
  const float top_of_all = reduce_max(top);
  const float amax = top_of_all > 0x1p-96f ? top_of_all : 0x1p-96f;
  const Vec inverse = set1(is_finite ? largest / amax : 0.0f);
  out.scale = is_finite ? amax / largest : __builtin_nanf("");
  Vec total = zero(), total2 = zero();
  const bool has_residual =
      f.planes == Planes::kResidual && is_finite && amax * static_cast<float>(count) > 24.0f * reduce_add(sum);
  const Vec minus_scale = set1(-out.scale);
  const Vec residual_inverse = set1(254.0f / out.scale);
  for (int64_t k = 0; k < f.group; k += kLanes) {
    std::byte* at = plane + k / 4 * quad_stride;
    const Vec v = load_n(x + k, count - k);
    Vec code = is_finite ? round_to_int(mul(v, inverse)) : zero();
    if (f.planes == Planes::kTwo) {
      const Vec high = round_to_int(mul(code, set1(0x1p-7f)));
      const Vec low = fma(high, set1(-128.0f), code);
      put_quads(at + plane_stride, quad_stride, low);
      total2 = add(total2, low);
      code = high;
    }
    put_quads(at, quad_stride, code);
    total = add(total, code);
    if (f.planes == Planes::kResidual) {
      const Vec left = has_residual ? round_to_int(mul(fma(minus_scale, code, v), residual_inverse)) : zero();
      put_quads(at + plane_stride, quad_stride, left);
      total2 = add(total2, left);
    }
  }
  out.minus_sum = -sum_of(total);
  out.minus_sum2 = -sum_of(total2);
  out.residual_scale = has_residual ? out.scale / 254.0f : 0.0f;
  return out;
}

template <int kRowTile>
void pack_rows(const PackRowsJob& job, int64_t tile_begin, int64_t tile_end) {
  const IntFormat& f = job.format;
  const int64_t num_groups = (job.k + f.group - 1) / f.group;
  for (int64_t t = tile_begin; t < tile_end; ++t) {
    const Tile tile = tile_at<kRowTile>(job.num_rows, t);
    std::byte* out = job.packed + tile.begin * packed_row_bytes(job.k, f);
    for (int64_t g = 0; g < num_groups; ++g, out += tile.rows * group_row_bytes(f)) {
      const int64_t k = g * f.group;
      const int64_t count = job.k - k < f.group ? job.k - k : f.group;
      const int64_t plane_bytes = tile.rows * f.group;
      std::byte* rows = out + num_planes(f) * plane_bytes;
      int32_t tile_has_residual = 0;
      for (int64_t m = 0; m < tile.rows; ++m) {
        const GroupOfRow row =
            quantize(row_of(job, tile.begin + m) + k, count, f, out + 4 * m, 4 * tile.rows, plane_bytes);
        if (row.residual_scale != 0.0f) tile_has_residual = 1;
        __builtin_memcpy(rows + m * static_cast<int64_t>(sizeof(row)), &row, sizeof(row));
      }
      __builtin_memcpy(rows + offsetof(GroupOfRow, tile_has_residual), &tile_has_residual, sizeof(tile_has_residual));
    }
  }
}

template <class Codes, int kTileRows, int kTileHalves>
struct IntKernel {
  static constexpr int kRowTile = kTileRows;
  static constexpr int kHalves = kTileHalves;

  // - zero * sum(a), times 16 for a high nibble.
  template <int kParity>
  static FASTLLM_INLINE Ints start(int32_t minus_sum, const uint8_t* zeros) {
    constexpr bool is_int8 = Codes::kZeroBits == Int8::kZeroBits;
    constexpr int kFactorBits = !is_int8 && kParity == 1 ? kHighBits : 0;
    constexpr int kOffsetBits = is_int8 ? kInt8OffsetBits : 0;
    const Ints sum = set1_int(minus_sum);
    if (zeros == nullptr) {
      if constexpr (kOffsetBits == Codes::kZeroBits) return set1_int(0);
      return shift_left<Codes::kZeroBits + kFactorBits>(sum);
    }
    const Ints products = madd(load_bytes(zeros + 16 * kParity), sum);
    if constexpr (kOffsetBits > 0) return add(products, shift_left<kOffsetBits>(set1_int(-minus_sum)));
    return shift_left<kFactorBits>(products);
  }

  template <int kRows, int kCount, int kFirst>
  static void multiply(const LinearJob& job, int64_t row_begin, int64_t first_half) {
    constexpr int kPanels = (kCount + 1) / 2;
    const IntFormat& f = job.format;
    const bool has_row_scales = f.scales == ScaleKind::kRow;
    const int64_t num_groups = (job.k + f.group - 1) / f.group;
    const int64_t num_quads = f.group / 4;
    const int64_t block_bytes = num_quads * Codes::kLineBytes + (has_row_scales ? 0 : 2 * kPanelRows);
    const int64_t zeros_panel_bytes = kPanelRows * (has_row_scales ? 1 : num_groups);

    const std::byte* a = job.packed + row_begin * packed_row_bytes(job.k, f);
    const std::byte* panels[kPanels];
    const uint8_t* zeros[kPanels];
    for (int p = 0; p < kPanels; ++p) {
      const int64_t panel = first_half / 2 + p;
      panels[p] = job.panels + panel * job.panel_bytes + (has_row_scales ? kRowScaleBytes : 0);
      zeros[p] = job.zeros != nullptr ? job.zeros + panel * zeros_panel_bytes : nullptr;
    }

    Vec acc[kRows][kCount];
    for (int m = 0; m < kRows; ++m) {
      for (int h = 0; h < kCount; ++h) acc[m][h] = zero();
    }
    for (int64_t g = 0; g < num_groups; ++g) {
      const auto* rows = reinterpret_cast<const GroupOfRow*>(a + num_planes(f) * f.group * kRows);
      const std::byte* second_plane = a + f.group * kRows;
      Ints sums[kRows][kCount];
      const auto begin = [&](int32_t GroupOfRow::* minus_sum) __attribute__((always_inline)) {
        for (int m = 0; m < kRows; ++m) {
          for (int h = 0; h < kCount; ++h) {
            sums[m][h] = (kFirst + h) % 2 == 0 ? start<0>(rows[m].*minus_sum, zeros[h / 2])
                                               : start<1>(rows[m].*minus_sum, zeros[h / 2]);
          }
        }
      };
      Vec scales[kCount];
      const auto flush = [&](int m, float scale) __attribute__((always_inline)) {
        for (int h = 0; h < kCount; ++h) {
          constexpr float kHigh = Codes::kZeroBits == Int4::kZeroBits ? 1.0f / (1 << kHighBits) : 1.0f;
          const Vec s = set1((kFirst + h) % 2 == 0 ? scale : scale * kHigh);
          const Vec dot = to_float(sums[m][h]);
          acc[m][h] = has_row_scales ? fma(dot, s, acc[m][h]) : fma(mul(dot, s), scales[h], acc[m][h]);
        }
      };

      begin(&GroupOfRow::minus_sum);
      dot_group<Codes, kRows, kCount, kFirst>(a, panels, num_quads, sums);
      if (f.planes == Planes::kTwo) {
        Ints high[kRows][kCount];
        for (int m = 0; m < kRows; ++m) {
          for (int h = 0; h < kCount; ++h) high[m][h] = shift_left<7>(sums[m][h]);
        }
        begin(&GroupOfRow::minus_sum2);
        for (int m = 0; m < kRows; ++m) {
          for (int h = 0; h < kCount; ++h) sums[m][h] = add(sums[m][h], high[m][h]);
        }
        dot_group<Codes, kRows, kCount, kFirst>(second_plane, panels, num_quads, sums);
      }
      for (int h = 0; h < kCount; ++h) {
        scales[h] = load_scales(panels[h / 2] + num_quads * Codes::kLineBytes + 32 * ((kFirst + h) % 2), f.scales);
      }
      for (int m = 0; m < kRows; ++m) flush(m, rows[m].scale);
      if (f.planes == Planes::kResidual && rows[0].tile_has_residual != 0) {
        begin(&GroupOfRow::minus_sum2);
        dot_group<Codes, kRows, kCount, kFirst>(second_plane, panels, num_quads, sums);
        for (int m = 0; m < kRows; ++m) {  // a row without an outlier skips the step: it would turn -0 into 0
          if (rows[m].residual_scale != 0.0f) flush(m, rows[m].residual_scale);
        }
      }
      a += kRows * group_row_bytes(f);
      for (int p = 0; p < kPanels; ++p) {
        panels[p] += block_bytes;
        if (zeros[p] != nullptr && !has_row_scales) zeros[p] += kPanelRows;
      }
    }
    for (int h = 0; h < kCount; ++h) {
      const int64_t half = first_half + h;
      if (has_row_scales) {
        const std::byte* scale = job.panels + half / 2 * job.panel_bytes + 64 * (half % 2);
        for (int m = 0; m < kRows; ++m) acc[m][h] = mul(acc[m][h], load(reinterpret_cast<const float*>(scale)));
      }
      for (int m = 0; m < kRows; ++m) put(job, row_begin + m, half * kLanes, acc[m][h]);
    }
  }
};

#if defined(__AVX512F__)
using Int8Kernel = IntKernel<Int8, 6, 2>;
using Int4Kernel = IntKernel<Int4, 6, 2>;
#elif defined(__AVX2__)
using Int8Kernel = IntKernel<Int8, 4, 1>;
using Int4Kernel = IntKernel<Int4, 6, 1>;
#else
using Int8Kernel = IntKernel<Int8, 4, 1>;
using Int4Kernel = IntKernel<Int4, 4, 1>;
#endif

template <class Kernel>
constexpr LinearEntry entry() {
  return {Kernel::kRowTile, packed_row_bytes, pack_rows<Kernel::kRowTile>, run<Kernel>};
}

}  // namespace

extern const LinearEntry kLinearIntKernels[2];
constinit const LinearEntry kLinearIntKernels[2] = {entry<Int8Kernel>(), entry<Int4Kernel>()};

}  // namespace fastllm::cpu::FASTLLM_ISA
