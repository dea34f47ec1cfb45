// y[m, n] = sum over k of x[m, k] * W[n, k] + bias[n]
//
// W lies in panels of 32 output rows, [k / 2][2 halves] pair blocks (kernels.h). Activations lie in tiles of up to
// row_tile rows, transposed, so that the innermost loop reads both as streams and every operand of a row is a
// broadcast.
//
// Order of the sum: one accumulator per (m, n), k ascending, one fused multiply-add each (bf16 level with bf16 weights:
// one two-term bf16 dot product per pair of k). The shape of a tile says how many accumulators live at once and nothing
// else, so a row has the same bits for any number of rows, panels and threads.
#include "cpu/simd.h"

#if defined(__AVX512BF16__)
#define FASTLLM_HAS_BF16_DOT 1
#endif

namespace fastllm::cpu::FASTLLM_ISA {
namespace {

// Rows of a tile. With 16 columns per half panel: AVX-512 keeps 12 x 2 accumulators, AVX2 6 x 1 of two registers.
#if defined(__AVX512F__)
constexpr int kRowTile = 12;
constexpr int kHalvesOfTile = 2;
#elif defined(__AVX2__)
constexpr int kRowTile = 6;
constexpr int kHalvesOfTile = 1;
#else
constexpr int kRowTile = 4;
constexpr int kHalvesOfTile = 1;
#endif

// Float activations: two fused multiply-adds per pair, the even k first.
template <class E>
struct Widened {
  static constexpr Elem kElem = E::kElem;
  using Activation = float;
  static constexpr int64_t kPairBytes = pair_block_bytes(kElem);
  static constexpr bool kIsRounded = false;

  template <int kRows, int kHalves>
  static FASTLLM_INLINE void step(const float* a, const std::byte* const (&w)[kHalves], int64_t offset,
                                  Vec (&acc)[kRows][kHalves]) {
    Vec even[kHalves], odd[kHalves];
    for (int h = 0; h < kHalves; ++h) load_pair(E{}, w[h] + offset, even[h], odd[h]);
    for (int m = 0; m < kRows; ++m) {
      const Vec x = set1(a[m]);
      for (int h = 0; h < kHalves; ++h) acc[m][h] = fma(x, even[h], acc[m][h]);
    }
    for (int m = 0; m < kRows; ++m) {
      const Vec x = set1(a[kRows + m]);
      for (int h = 0; h < kHalves; ++h) acc[m][h] = fma(x, odd[h], acc[m][h]);
    }
  }
};

#ifdef FASTLLM_HAS_BF16_DOT
struct Bf16Dot {
  static constexpr Elem kElem = Elem::kBF16;
  using Activation = uint16_t;
  static constexpr int64_t kPairBytes = pair_block_bytes(kElem);
  static constexpr bool kIsRounded = true;

  template <int kRows, int kHalves>
  static FASTLLM_INLINE void step(const uint16_t* a, const std::byte* const (&w)[kHalves], int64_t offset,
                                  Vec (&acc)[kRows][kHalves]) {
    __m512i weights[kHalves];
    for (int h = 0; h < kHalves; ++h) weights[h] = load_bits(w[h] + offset);
    for (int m = 0; m < kRows; ++m) {
      int32_t pair;
      __builtin_memcpy(&pair, a + 2 * m, sizeof(pair));
      const __m512i x = _mm512_set1_epi32(pair);
      for (int h = 0; h < kHalves; ++h) {
        acc[m][h].v =
            _mm512_dpbf16_ps(acc[m][h].v, reinterpret_cast<__m512bh>(weights[h]), reinterpret_cast<__m512bh>(x));
      }
    }
  }
};
#endif

// Rows of tile t when num_rows are split into tiles as evenly as possible.
struct Tile {
  int64_t begin, rows;
};
FASTLLM_INLINE Tile tile_at(int64_t num_rows, int64_t t) {
  const int64_t num_tiles = (num_rows + kRowTile - 1) / kRowTile;
  const int64_t quotient = num_rows / num_tiles;
  const int64_t remainder = num_rows % num_tiles;
  return {t * quotient + (t < remainder ? t : remainder), quotient + (t < remainder ? 1 : 0)};
}

template <class Dot>
void pack_rows(const PackRowsJob& job, int64_t tile_begin, int64_t tile_end) {
  using A = typename Dot::Activation;
  const int64_t padded_k = (job.k + 1) / 2 * 2;
  for (int64_t t = tile_begin; t < tile_end; ++t) {
    const Tile tile = tile_at(job.num_rows, t);
    A* out = static_cast<A*>(job.packed) + tile.begin * padded_k;
    for (int64_t m = 0; m < tile.rows; ++m) {
      const int64_t row = job.row_ids != nullptr ? job.row_ids[tile.begin + m] : tile.begin + m;
      const float* x = job.x + row * job.x_stride;
      for (int64_t k = 0; k < padded_k; k += 16) {
        const int64_t n = padded_k - k < 16 ? padded_k - k : 16;
        const Vec v = load_n(x + k, job.k - k);
        if constexpr (Dot::kIsRounded) {
          uint16_t rounded[16];
          store_bf16(rounded, v);
          for (int64_t i = 0; i < n; i += 2) __builtin_memcpy(out + (k + i) * tile.rows + 2 * m, rounded + i, 4);
        } else {
          float lanes_of_v[16];
          store(lanes_of_v, v);
          for (int64_t i = 0; i < n; ++i) out[(k + i) * tile.rows + m] = lanes_of_v[i];
        }
      }
    }
  }
}

// Writes 16 columns of one row. `column` is relative to the first column of the job.
FASTLLM_INLINE void put(const LinearJob& job, int64_t row, int64_t column, Vec acc) {
  const int64_t n = job.num_cols - column;
  if (n <= 0) return;
  if (job.bias != nullptr) acc = add(acc, load_n(job.bias + column, n));
  if (job.row_weights != nullptr) {
    float* y = job.y + job.row_ids[row] * job.y_stride + column;
    store_n(y, fma(set1(job.row_weights[row]), acc, load_n(y, n)), n);
  } else {
    store_n(job.y + row * job.y_stride + column, acc, n);
  }
}

// kRows rows of one tile times kHalves half panels, starting with half `first_half` of the job.
template <class Dot, int kRows, int kHalves>
void multiply(const LinearJob& job, int64_t row_begin, int64_t first_half) {
  using A = typename Dot::Activation;
  const int64_t num_pairs = (job.k + 1) / 2;
  const A* a = static_cast<const A*>(job.packed) + row_begin * 2 * num_pairs;
  const std::byte* w[kHalves];
  for (int h = 0; h < kHalves; ++h) {
    const int64_t half = first_half + h;
    w[h] = job.panels + half / 2 * job.panel_bytes + half % 2 * Dot::kPairBytes;
  }
  Vec acc[kRows][kHalves];
  for (int m = 0; m < kRows; ++m) {
    for (int h = 0; h < kHalves; ++h) acc[m][h] = zero();
  }
  for (int64_t r = 0; r < num_pairs; ++r) {
    Dot::step(a + r * 2 * kRows, w, r * 2 * Dot::kPairBytes, acc);
  }
  for (int m = 0; m < kRows; ++m) {
    for (int h = 0; h < kHalves; ++h) put(job, row_begin + m, (first_half + h) * kLanes, acc[m][h]);
  }
}

template <class Dot, int kHalves, int kRows = kRowTile>
FASTLLM_INLINE void multiply_rows(int64_t rows, const LinearJob& job, int64_t row_begin, int64_t first_half) {
  if constexpr (kRows == 1) {
    multiply<Dot, 1, kHalves>(job, row_begin, first_half);
  } else {
    if (rows == kRows) return multiply<Dot, kRows, kHalves>(job, row_begin, first_half);
    multiply_rows<Dot, kHalves, kRows - 1>(rows, job, row_begin, first_half);
  }
}

template <class Dot>
void run(const LinearJob& job) {
  const int64_t num_halves = 2 * job.num_panels;
  if (job.num_rows == 1) {
    // One row: two panels at once, so that four chains hide the latency of the multiply-add.
    int64_t half = 0;
    for (; half + 4 <= num_halves; half += 4) multiply<Dot, 1, 4>(job, 0, half);
    for (; half < num_halves; half += 2) multiply<Dot, 1, 2>(job, 0, half);
    return;
  }
  const int64_t num_tiles = (job.num_rows + kRowTile - 1) / kRowTile;
  for (int64_t half = 0; half < num_halves; half += kHalvesOfTile) {
    for (int64_t t = 0; t < num_tiles; ++t) {
      const Tile tile = tile_at(job.num_rows, t);
      multiply_rows<Dot, kHalvesOfTile>(tile.rows, job, tile.begin, half);
    }
  }
}

template <class Dot>
constexpr LinearEntry entry() {
  return {kRowTile, sizeof(typename Dot::Activation), pack_rows<Dot>, run<Dot>};
}

}  // namespace

// Indexed by Elem. External linkage for a constant needs the earlier declaration.
extern const LinearEntry kLinearKernels[kNumElems];
constinit const LinearEntry kLinearKernels[kNumElems] = {
    entry<Widened<F32>>(),
#ifdef FASTLLM_HAS_BF16_DOT
    entry<Bf16Dot>(),
#else
    entry<Widened<BF16>>(),
#endif
    entry<Widened<F16>>(),
};

}  // namespace fastllm::cpu::FASTLLM_ISA
