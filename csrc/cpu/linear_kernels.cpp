// y[m, n] = sum over k of x[m, k] * W[n, k] + bias[n], W of f32, bf16 or f16
//
// W lies in panels of 32 output rows, [k / 2][2 halves] pair blocks (kernels.h). Activations lie in tiles of up to
// row_tile rows, transposed, so that the innermost loop reads both as streams and every operand of a row is a
// broadcast.
//
// Order of the sum: one accumulator per (m, n), k ascending, one fused multiply-add each (bf16 level with bf16 weights:
// one two-term bf16 dot product per pair of k). The shape of a tile says how many accumulators live at once and nothing
// else, so a row has the same bits for any number of rows, panels and threads.
#include "cpu/linear_float.h"

namespace fastllm::cpu::FASTLLM_ISA {
namespace {

// Rows of a tile. With 16 columns per half panel: AVX-512 keeps 12 x 2 accumulators, AVX2 6 x 1 of two registers.
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

template <class Dot>
struct FloatKernel {
  static constexpr int kRowTile = kTileRows;
  static constexpr int kHalves = kTileHalves;

  // kRows rows of one tile times kCount half panels, starting with half `first_half` of the job.
  template <int kRows, int kCount, int>
  static void multiply(const LinearJob& job, int64_t row_begin, int64_t first_half) {
    using A = typename Dot::Activation;
    const int64_t num_pairs = (job.k + 1) / 2;
    const A* a = reinterpret_cast<const A*>(job.packed) + row_begin * 2 * num_pairs;
    const std::byte* w[kCount];
    for (int h = 0; h < kCount; ++h) {
      const int64_t half = first_half + h;
      w[h] = job.panels + half / 2 * job.panel_bytes + half % 2 * Dot::kPairBytes;
    }
    Vec acc[kRows][kCount];
    for (int m = 0; m < kRows; ++m) {
      for (int h = 0; h < kCount; ++h) acc[m][h] = zero();
    }
    constexpr int64_t kPairsPerStep = 16;
    Ahead ahead(job, (num_pairs + kPairsPerStep - 1) / kPairsPerStep);
    for (int64_t begin = 0; begin < num_pairs; begin += kPairsPerStep) {
      if constexpr (kRows > 1) ahead.next();
      const int64_t end = begin + kPairsPerStep < num_pairs ? begin + kPairsPerStep : num_pairs;
      for (int64_t r = begin; r < end; ++r) Dot::step(a + r * 2 * kRows, w, r * 2 * Dot::kPairBytes, acc);
    }
    for (int m = 0; m < kRows; ++m) {
      for (int h = 0; h < kCount; ++h) put(job, row_begin + m, (first_half + h) * kLanes, acc[m][h]);
    }
  }
};

template <class Dot>
constexpr LinearEntry entry() {
  return {kTileRows, float_row_bytes<Dot>, pack_float_rows<Dot, kTileRows>, run<FloatKernel<Dot>>};
}

}  // namespace

// Indexed by Elem. External linkage for a constant needs the earlier declaration.
extern const LinearEntry kLinearKernels[kNumElems];
constinit const LinearEntry kLinearKernels[kNumElems] = {
    entry<Widened<F32>>(),
    entry<ForBf16>(),
    entry<Widened<F16>>(),
};

}  // namespace fastllm::cpu::FASTLLM_ISA
