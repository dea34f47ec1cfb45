// y = x W^T + bias with int8 or int4 weights and activations quantized to signed bytes (definition: ops/weights.h).
//
// W lies in panels of 32 output rows, one block per activation group (kernels.h); activations in tiles (int_rows.h).
// For each group the tile's sums start at -zero * sum(a), so that zero points cost nothing in the loop; dot products
// are exact; one float multiply-add per output and group follows, groups ascending. Exact sums can be formed in any
// order, and the float steps have one: the bits are the same for any number of rows, tile, thread and level. High
// nibbles are multiplied where they lie (16 * code): sums are 16 times too large and their scale is 16 times smaller,
// which changes no bit.
#include "cpu/int_panels.h"
#include "cpu/int_rows.h"

namespace fastllm::cpu::FASTLLM_ISA {
namespace {

// The two common cases have kernels of their own, which keep everything in registers: scales of groups and one byte for
// an activation (a8, a8r), without and with zeros. (Plain loops have no registers to keep.)
enum class Style { kSymmetric, kZeros, kAny };
#if defined(__AVX2__)
constexpr bool kHasStyles = true;
#else
constexpr bool kHasStyles = false;
#endif

// A tile of rows times kCount half panels, of which the first has parity kFirst.
template <class Codes, int kRows, int kCount, int kFirst, Style kStyle>
struct Product {
  static constexpr int kPanels = (kCount + 1) / 2;
  static FASTLLM_INLINE constexpr int parity(int h) { return (kFirst + h) % 2; }

  // Where the current group lies.
  const std::byte* first;
  const std::byte* second;
  const std::byte* blocks[kPanels];
  const uint8_t* zeros[kPanels];
  int64_t num_quads;
  ScaleKind scale_kind;

  [[nodiscard]] FASTLLM_INLINE bool has_row_scales() const {
    return kStyle == Style::kAny && scale_kind == ScaleKind::kRow;
  }
  [[nodiscard]] FASTLLM_INLINE bool has_zeros() const {
    return kStyle == Style::kZeros || (kStyle == Style::kAny && zeros[0] != nullptr);
  }
  [[nodiscard]] FASTLLM_INLINE const GroupOfRow& row(int m) const {
    return reinterpret_cast<const GroupOfRow*>(first + kRows * 4 * num_quads)[m];
  }

  FASTLLM_INLINE void begin(int plane, Ints (&sums)[kRows][kCount]) const {
    if (!has_zeros()) {
      FASTLLM_UNROLL for (int m = 0; m < kRows; ++m) {
        FASTLLM_UNROLL for (int h = 0; h < kCount; ++h) sums[m][h] = set1_int(row(m).plane[plane].start[parity(h)]);
      }
      return;
    }
    FASTLLM_UNROLL for (int h = 0; h < kCount; ++h) {
      Ints zero_point = load_bytes(zeros[h / 2] + 16 * parity(h));
      if (parity(h) == 1) zero_point = shift_left<Codes::kHighBits>(zero_point);
      FASTLLM_UNROLL for (int m = 0; m < kRows; ++m) {
        const int32_t minus_sum = row(m).plane[plane].start[0];
        sums[m][h] = madd(zero_point, set1_int(minus_sum));
        if constexpr (Codes::kOffset != 0) sums[m][h] = add(sums[m][h], set1_int(-minus_sum * Codes::kOffset));
      }
    }
  }

  // acc = fma(float(sum) * scale of the activations, scale of the weights, acc) for row m.
  FASTLLM_INLINE void flush(int m, int plane, const Ints (&sums)[kRows][kCount], const Vec (&scales)[kCount],
                            Vec (&acc)[kRows][kCount]) const {
    FASTLLM_UNROLL for (int h = 0; h < kCount; ++h) {
      const Vec s = set1(row(m).plane[plane].scale[parity(h)]);
      const Vec dot = to_float(sums[m][h]);
      acc[m][h] = has_row_scales() ? fma(dot, s, acc[m][h]) : fma(mul(dot, s), scales[h], acc[m][h]);
    }
  }

  FASTLLM_INLINE void load_group_scales(Vec (&scales)[kCount]) const {
    FASTLLM_UNROLL for (int h = 0; h < kCount; ++h) {
      scales[h] = load_scales(blocks[h / 2] + num_quads * Codes::kLineBytes + 32 * parity(h), scale_kind);
    }
  }

  FASTLLM_INLINE void add_group(Vec (&acc)[kRows][kCount]) const {
    Ints sums[kRows][kCount];
    Vec scales[kCount];
    begin(0, sums);
    dot_group<Codes, kRows, kCount, kFirst>(first, blocks, num_quads, sums);
    load_group_scales(scales);
    FASTLLM_UNROLL for (int m = 0; m < kRows; ++m) flush(m, 0, sums, scales, acc);
  }

  // The second byte: sum = 128 * sum of high bytes + sum of low bytes.
  FASTLLM_INLINE void add_group_of_two(Vec (&acc)[kRows][kCount]) const {
    Ints sums[kRows][kCount], low[kRows][kCount];
    Vec scales[kCount];
    begin(0, sums);
    dot_group<Codes, kRows, kCount, kFirst>(first, blocks, num_quads, sums);
    begin(1, low);
    FASTLLM_UNROLL for (int m = 0; m < kRows; ++m) {
      FASTLLM_UNROLL for (int h = 0; h < kCount; ++h) sums[m][h] = add(shift_left<7>(sums[m][h]), low[m][h]);
    }
    dot_group<Codes, kRows, kCount, kFirst>(second, blocks, num_quads, sums);
    load_group_scales(scales);
    FASTLLM_UNROLL for (int m = 0; m < kRows; ++m) flush(m, 0, sums, scales, acc);
  }

  // Rare, so not inline: the loop around it keeps its registers. A row without an outlier skips the step, which would
  // turn -0 into 0.
  __attribute__((noinline)) void add_residual(Vec (&acc)[kRows][kCount]) const {
    Ints sums[kRows][kCount];
    Vec scales[kCount];
    begin(1, sums);
    dot_group<Codes, kRows, kCount, kFirst>(second, blocks, num_quads, sums);
    load_group_scales(scales);
    FASTLLM_UNROLL for (int m = 0; m < kRows; ++m) {
      if (row(m).plane[1].scale[0] != 0.0f) flush(m, 1, sums, scales, acc);
    }
  }
};

template <class Codes, int kTileRows, int kTileHalves>
struct IntKernel {
  static constexpr int kRowTile = kTileRows;
  static constexpr int kHalves = kTileHalves;

  template <int kRows, int kCount, int kFirst>
  static void multiply(const LinearJob& job, int64_t row_begin, int64_t first_half) {
    if constexpr (kHasStyles) {
      if (job.format.scales != ScaleKind::kRow && job.format.planes != Planes::kTwo) {
        return job.zeros != nullptr
                   ? multiply_style<kRows, kCount, kFirst, Style::kZeros>(job, row_begin, first_half)
                   : multiply_style<kRows, kCount, kFirst, Style::kSymmetric>(job, row_begin, first_half);
      }
    }
    multiply_style<kRows, kCount, kFirst, Style::kAny>(job, row_begin, first_half);
  }

  template <int kRows, int kCount, int kFirst, Style kStyle>
  static void multiply_style(const LinearJob& job, int64_t row_begin, int64_t first_half) {
    using P = Product<Codes, kRows, kCount, kFirst, kStyle>;
    const IntFormat& f = job.format;
    const IntPanels<Codes> panels(job);
    P p;
    p.scale_kind = f.scales;
    p.num_quads = panels.num_quads;
    p.first = job.packed + row_begin * int_row_bytes(job.k, f);
    p.second = p.first + kRows * panels.num_groups * first_plane_bytes(f);
    FASTLLM_UNROLL for (int i = 0; i < P::kPanels; ++i) {
      p.blocks[i] = panels.first_block(first_half / 2 + i);
      p.zeros[i] = panels.first_zeros(first_half / 2 + i);
    }

    Vec acc[kRows][kCount];
    FASTLLM_UNROLL for (int m = 0; m < kRows; ++m) {
      FASTLLM_UNROLL for (int h = 0; h < kCount; ++h) acc[m][h] = zero();
    }
    Ahead ahead(job, panels.num_groups);
    for (int64_t g = 0; g < panels.num_groups; ++g) {
      if constexpr (kRows > 1) ahead.next();
      if (kStyle == Style::kAny && f.planes == Planes::kTwo) {
        p.add_group_of_two(acc);
      } else {
        p.add_group(acc);
        if (__builtin_expect(p.row(0).tile_has_residual, 0) != 0) {
          Vec in_memory[kRows][kCount];
          FASTLLM_UNROLL for (int m = 0; m < kRows; ++m) {
            FASTLLM_UNROLL for (int h = 0; h < kCount; ++h) in_memory[m][h] = acc[m][h];
          }
          const P copy = p;
          copy.add_residual(in_memory);
          FASTLLM_UNROLL for (int m = 0; m < kRows; ++m) {
            FASTLLM_UNROLL for (int h = 0; h < kCount; ++h) acc[m][h] = in_memory[m][h];
          }
        }
      }
      p.first += kRows * first_plane_bytes(f);
      p.second += kRows * f.group;
      FASTLLM_UNROLL for (int i = 0; i < P::kPanels; ++i) {
        p.blocks[i] += panels.block_bytes;
        if (p.has_zeros() && !p.has_row_scales()) p.zeros[i] += kPanelRows;
      }
    }
    Vec result[kRows][kCount];
    FASTLLM_UNROLL for (int m = 0; m < kRows; ++m) {
      FASTLLM_UNROLL for (int h = 0; h < kCount; ++h) result[m][h] = acc[m][h];
    }
    FASTLLM_UNROLL for (int h = 0; h < kCount; ++h) {
      FASTLLM_UNROLL for (int m = 0; m < kRows; ++m) panels.put_scaled(row_begin + m, first_half + h, result[m][h]);
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
using Int8Kernel = IntKernel<Int8, 2, 1>;
using Int4Kernel = IntKernel<Int4, 2, 1>;
#endif

template <class Codes, class Kernel>
constexpr LinearEntry entry() {
  return {Kernel::kRowTile, int_row_bytes, pack_int_rows<Codes, Kernel::kRowTile>, run<Kernel>};
}

}  // namespace

extern const LinearEntry kLinearIntKernels[2];
constinit const LinearEntry kLinearIntKernels[2] = {entry<Int8, Int8Kernel>(), entry<Int4, Int4Kernel>()};

}  // namespace fastllm::cpu::FASTLLM_ISA
