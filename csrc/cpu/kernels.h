// The border between the drivers (compiled for the baseline) and the kernels (compiled once per ISA level): structs of
// pointers and sizes, and one table of plain functions per level.
//
// Rule for everything that a kernel file includes: nothing with linkage outside the namespace of its level, no standard
// containers or algorithms, no dynamic initialisers. Otherwise the linker may keep the AVX-512 copy of a shared inline
// function for a processor that lacks AVX-512. Hence no core/dtype.h here.
//
// "Pair block": the unit of every matrix layout here. Two consecutive steps of a reduction (k, k + 1) times 16 lanes:
//   bf16, int8: lane 0 step 0, lane 0 step 1, lane 1 step 0, ...   (the operand of a dot product; int8 once widened)
//   f16, f32: 16 lanes of step 0, then 16 lanes of step 1
#pragma once

#include <cstddef>
#include <cstdint>

#include "ops/sampling_scans.h"

namespace fastllm::cpu {

enum class Elem : uint8_t { kF32, kBF16, kF16 };
constexpr int kNumElems = 3;
constexpr int64_t size_of_elem(Elem e) { return e == Elem::kF32 ? 4 : 2; }

enum class KvElem : uint8_t { kF32, kBF16, kF16, kI8 };
constexpr int kNumKvElems = 4;
constexpr int64_t size_of_elem(KvElem e) { return e == KvElem::kF32 ? 4 : e == KvElem::kI8 ? 1 : 2; }

constexpr int64_t kLanes = 16;
constexpr int64_t kPanelRows = 32;    // output rows of W in a panel: two pair blocks side by side
constexpr int64_t kGroupRows = 96;    // rows of activations that one task multiplies: with 8 panels it fits a 1 MB L2
constexpr int64_t kFfnColumns = 128;  // of a feed-forward layer in one task, with both of its products; >= any group
constexpr int64_t kFfnStride = kFfnColumns + kPanelRows;  // of their results
constexpr int64_t kPackColumns = 512;                     // columns that one task packs, of one tile of rows
constexpr int64_t kPageTokens = 16;
constexpr int64_t kTileTokens = 256;  // attention tile, at absolute positions
constexpr int64_t kTilePages = kTileTokens / kPageTokens;
constexpr int64_t kAttentionRows = 32;  // (query token, head) rows of one attention item

constexpr int64_t kPackedQBytes = 4;         // per number of q: what pack_q() leaves never needs more
constexpr int64_t kScaleDims = 32;           // dimensions of K that share a scale in an int8 page
constexpr int64_t kScaleBytes = 2 * kLanes;  // bf16 scales of the 16 tokens of a page

constexpr int64_t pair_block_bytes(Elem e) { return 2 * kLanes * size_of_elem(e); }
constexpr int64_t pair_block_bytes(KvElem e) { return 2 * kLanes * size_of_elem(e); }

// How integer weights lie in their panels, and how activations meet them (ops/weights.h defines the modes).
//
// A panel is one block per activation group, ascending. In a block, line q has columns 4q..4q+3 of the group for 16
// rows:
//   int4: byte 64 q + 4 l + j           low nibble row l, high nibble row 16 + l, column 4q + j
//   int8: byte 128 q + 64 h + 4 l + j   row 16 h + l
// Then, with scales of groups, 32 of 16 bits in row order. Scales of whole rows: 32 floats before the first block.
// Zeros, if any, are an array of their own: [panel][scale group][32 rows], a byte each.
enum class ScaleKind : uint8_t { kF16, kBF16, kRow };
enum class Planes : uint8_t { kOne, kResidual, kTwo };  // a8, a8r, a15
struct IntFormat {
  int64_t group = 0;  // columns of an activation group: 32, 64, 128
  ScaleKind scales = ScaleKind::kF16;
  Planes planes = Planes::kOne;
  int32_t zero = 0;  // of symmetric weights; 0: each scale has one of its own
};
constexpr int64_t kRowScaleBytes = 4 * kPanelRows;

// Prepares columns [k_begin, k_end) of rows of x for the kernels of one LinearEntry, in tiles of up to `row_tile` rows
// whose innermost index is the row; a tile begins at its first row * packed_row_bytes. The layout within belongs to the
// entry. k_begin is a multiple of format.group and of 32.
struct PackRowsJob {
  const float* x = nullptr;  // at column k_begin
  int64_t x_stride = 0;
  const int32_t* row_ids = nullptr;  // row i comes from row row_ids[i] of x; nullptr: from row i
  int64_t num_rows = 0;              // of this group, <= kGroupRows
  int64_t k = 0;                     // of whole rows
  int64_t k_begin = 0;
  int64_t k_end = 0;            // <= k
  IntFormat format;             // of integer weights
  std::byte* packed = nullptr;  // of this group
};

// Rows of one group times some panels of one matrix.
struct LinearJob {
  const std::byte* packed = nullptr;  // activations of the group
  int64_t num_rows = 0;
  int64_t k = 0;
  IntFormat format;                // of integer weights
  const uint8_t* zeros = nullptr;  // at the first panel, or nullptr: 8 (int4) or 128 (int8)
  const std::byte* panels = nullptr;
  int64_t panel_bytes = 0;
  int64_t num_panels = 0;
  int64_t num_cols = 0;         // columns of y that exist, from the first panel on
  const float* bias = nullptr;  // at the first panel, or nullptr
  float* y = nullptr;           // at the first panel
  int64_t y_stride = 0;
  // With row_weights: y[row_ids[i]] += row_weights[i] * result[i] instead of y[i] = result[i].
  const float* row_weights = nullptr;
  const int32_t* row_ids = nullptr;
  // What will be multiplied after this tile of rows, to be fetched meanwhile; or nullptr (linear_tile.h).
  const std::byte* ahead = nullptr;
  int64_t ahead_bytes = 0;
};

struct LinearEntry {
  int64_t row_tile;
  int64_t (*packed_row_bytes)(int64_t k, const IntFormat& format);
  void (*pack_rows)(const PackRowsJob& job, int64_t tile_begin, int64_t tile_end);
  void (*run)(const LinearJob& job);
};

// The state of up to kAttentionRows rows: running maximum m, sum l of exp(score - m), and the same sum of V.
struct AttentionState {
  float* m = nullptr;
  float* l = nullptr;
  float* o = nullptr;  // [rows, head_dim padded to 16]
};

struct AttentionTileJob {
  const float* q = nullptr;       // [num_rows, head_dim]
  std::byte* packed_q = nullptr;  // the same as pack_q() leaves it, kPackedQBytes * padded head_dim bytes a row
  int64_t num_rows = 0;
  int64_t head_dim = 0;
  const std::byte* kv = nullptr;  // page 0, at the K part of the kv head
  int64_t page_bytes = 0;
  int64_t k_scale_offset = 0;      // from the K part, int8 only: [head_dim / 32][16 tokens]
  int64_t v_offset = 0;            // from the K part to the V part
  int64_t v_scale_offset = 0;      // from the K part, int8 only: [16 tokens]
  const int32_t* pages = nullptr;  // ids of the tile's pages
  // What the thread reads after this tile, to be fetched ahead: K parts as kv and pages are.
  const std::byte* next_kv = nullptr;
  const int32_t* next_pages = nullptr;
  int64_t num_next_pages = 0;
  const int32_t* begin = nullptr;  // [num_rows] the row sees tokens [begin, end) of the tile
  const int32_t* end = nullptr;
  float scale = 1.0f;
  float softcap = 0.0f;
  float* scores = nullptr;     // [num_rows, kTileTokens] scratch
  int16_t* weights = nullptr;  // [num_rows, kTileTokens] scratch: the weights of V as 16-bit factors
  AttentionState out;
};

struct AttentionKernels {
  // Once before the tiles of the same rows; nullptr where tiles read q itself.
  void (*pack_q[kNumKvElems])(const AttentionTileJob& job);
  void (*tile[kNumKvElems])(const AttentionTileJob& job);
  void (*merge)(const AttentionState& into, const AttentionState& tile, int64_t num_rows, int64_t head_dim);
  // out[i] = o / l, sinks[i] joining the sum if sinks is not nullptr.
  void (*finish)(const AttentionState& state, const float* const* sinks, float* const* out, int64_t num_rows,
                 int64_t head_dim);
};

struct NormRow {
  const float* x = nullptr;
  const float* add = nullptr;  // or nullptr
  float* sum = nullptr;        // where x + add goes, or nullptr
  const float* weight = nullptr;
  float weight_offset = 0.0f;
  float eps = 0.0f;
  int64_t size = 0;
  float* y = nullptr;
};

// Where the K/V of one token and kv head go.
struct KvSlot {
  std::byte* k = nullptr;  // K part of the page and kv head
  std::byte* v = nullptr;
  std::byte* k_scales = nullptr;  // int8 only
  std::byte* v_scales = nullptr;
  int64_t token = 0;  // in the page
};

enum class GatedKind : uint8_t { kSilu, kGeluTanh, kClampedSwiglu };
struct GatedRow {
  const float* gate = nullptr;
  const float* up = nullptr;
  int64_t size = 0;
  GatedKind kind = GatedKind::kSilu;
  float alpha = 0.0f;
  float limit = 0.0f;
  float* y = nullptr;
};

struct ElementwiseKernels {
  void (*rms_norm)(const NormRow& row);
  void (*rotate)(float* head, const float* cos, const float* sin, int64_t num_freqs);
  void (*store_kv[kNumKvElems])(const KvSlot& slot, const float* k, const float* v, int64_t head_dim);
  void (*gated)(const GatedRow& row);
  void (*add)(float* residual, const float* x, int64_t size);
  void (*add_gated)(float* residual, const float* x, float gate, int64_t size);  // += x * sigmoid(gate)
  void (*softcap)(float* x, float cap, int64_t size);
};

struct ProbeKernels {
  void (*read)(const std::byte* data, int64_t bytes, float* sink);  // bytes: a multiple of 256
  double (*fma_loop)(int64_t num_rounds);                           // returns floating point operations done
  // The same with bf16 dot products, and with those of unsigned and signed bytes; nullptr where the level lacks them.
  double (*bf16_dot_loop)(int64_t num_rounds);
  double (*int8_dot_loop)(int64_t num_rounds);
};

struct KernelTable {
  const LinearEntry* linear;          // [kNumElems] float weights
  const LinearEntry* linear_int;      // int8, int4 with integer activations
  const LinearEntry* linear_dequant;  // int8, int4 with bf16 activations, then the same with float32
  const AttentionKernels* attention;
  const ElementwiseKernels* elementwise;
  const SampleScans* sampling;
  const ProbeKernels* probe;
};

}  // namespace fastllm::cpu

#define FASTLLM_INLINE inline __attribute__((always_inline))
#define FASTLLM_DECLARE_KERNELS(isa)                   \
  namespace fastllm::cpu::isa {                        \
  extern const LinearEntry kLinearKernels[];           \
  extern const LinearEntry kLinearIntKernels[];        \
  extern const LinearEntry kLinearDequantKernels[];    \
  extern const AttentionKernels kAttentionKernels;     \
  extern const ElementwiseKernels kElementwiseKernels; \
  extern const SampleScans kSamplingKernels;           \
  extern const ProbeKernels kProbeKernels;             \
  }
