// y[m, n] = sum over k of x[m, k] * W[n, k] + bias[n], W in tiles (weight_tiles.h), x in bf16 or f16, sums in float.
//
// Output rows of W are on M of the tensor core, tokens on N: one to eight tokens fill an instruction, so a decode step
// wastes nothing, and the weights go from memory to registers in the layout of the A operand.
//
// CTA = 128 rows of W (a band) x 8, 16, 32 or 64 tokens; 8 warps, each owns a strip of 16 rows. A stage is a chunk of
// 64 columns: every lane copies its own words of the weights (cp.async, read back by the same lane: no barrier), all
// lanes together the tokens' chunk (rows of 128 bytes at a pitch of 144: nine 16-byte units, odd, so ldmatrix has no
// bank conflicts). 3 to 6 stages are in flight.
//
// Integer weights and fp8: codes enter the product as they are, exactly; the sum of a group of columns is multiplied by
// its scale once. Four multiply-adds per group instead of one multiplication per weight, and no scale is ever rounded.
//
// Order of the sum, the same for every number of tokens: K is cut into segments whose length depends on (N, K) alone.
// Within a segment 16 columns at a time, ascending, groups added as they end; segments are added in ascending order.
// With few tokens (kSplit) each segment is a CTA of its own, which fills the machine; the last to finish adds the
// partial sums. With many, one CTA walks all segments. Both give the same bits.
//
// Bytes: N * K * bits / 8 once per tile of tokens, tiles of one band next to each other in time, for the second-level
// cache. Ideas: Marlin (arXiv 2408.11743), TurboMind (arXiv 2508.15601), stream-K.
// Tested in tests/ops and tests/native/gemm_cuda_test.cpp; timed in benches/cuda/bench_int4_gemm.
#include <algorithm>

#include "core/checked.h"
#include "core/error.h"
#include "cuda/fl/gpu.h"
#include "cuda/gemm/fragments.h"
#include "cuda/gemm/gemm.h"
#include "cuda/gemm/load_scales.h"
#include "cuda/gemm/tile_of_block.h"

namespace fastllm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kPitch = kChunkCols + 8;  // 16-bit elements of a token's chunk in shared memory

// A machine of 132 processors with 1.5 CTAs each. A constant, so that bits are the same on every chip.
constexpr int64_t kWantedCtas = 192;
constexpr int64_t kMinSegmentCols = 512;
constexpr int64_t kMaxSplitRows = 32;  // more rows fill the machine without a split

struct GemmArgs {
  WeightView w;
  const uint16_t* x;
  int64_t x_stride;
  int32_t num_rows;
  const float* bias;
  float* y;
  int64_t y_stride;
  const int32_t* row_ids;
  const RowTile* tiles;
  const int32_t* num_tiles;
  float* partials;  // [segments][num_rows][N]
  uint32_t* tickets;
  int32_t segment_chunks;
};

template <class Fragments, int kTokens>
struct Shared {
  // Bytes in flight are what a memory-bound kernel lives on: 6 x 4 KB for int4, 4 x 8 for int8, 4 x 16 for 16 bits; 3 x
  // (16 + 9) KB leaves room for one CTA in the 99 KB of sm_89.
  static constexpr int kStages = Fragments::kWords == 1 ? 6 : (Fragments::kWords == 4 && kTokens == 64 ? 3 : 4);
  Word weights[kStages][kWarps][Fragments::kWords][32];
  alignas(16) uint16_t x[kStages][kTokens][kPitch];
  int32_t is_last;
};

template <int kTiles>
struct Sums {
  float v[kTiles][4];

  __device__ void clear() {
    for (int j = 0; j < kTiles; ++j) {
      for (int i = 0; i < 4; ++i) v[j][i] = 0.0f;
    }
  }
};

template <class Fragments>
__device__ ZeroPair load_zeros(const WeightView& w, const unsigned char* expert, int64_t index) {
  if (w.zero_offset == 0) return Fragments::zeros(Fragments::kSymmetricZero, Fragments::kSymmetricZero);
  const unsigned char* zeros = expert + w.zero_offset + index;
  return Fragments::zeros(zeros[0], zeros[1]);
}

// registers: 184
template <class Fragments, int kTokens, bool kSplit>
__global__ void __launch_bounds__(kThreads, kTokens == 64 ? 1 : 2) gemm_kernel(GemmArgs a) {
  using Smem = Shared<Fragments, kTokens>;
  constexpr int kStages = Smem::kStages;
  constexpr int kTiles = kTokens / 8;
  constexpr int kPieces = (kTokens * 8 + kThreads - 1) / kThreads;  // 16-byte pieces of x that a thread copies
  Smem& smem = *fl::smem<Smem>();

  RowTile tile;
  if (!find_tile<kTokens>(a, tile)) return;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  const int lane = thread % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int band = static_cast<int>(blockIdx.y);
  const unsigned char* expert = a.w.data + tile.expert * a.w.expert_bytes;

  const unsigned char* weights =
      expert + (static_cast<int64_t>(band) * a.w.num_chunks * kStripsPerBand + warp) * Fragments::kWords * 512 +
      lane * 16;
  const uint16_t* rows[kPieces];
  for (int i = 0; i < kPieces; ++i) {
    const int token = (thread + i * kThreads) / 8;
    rows[i] = nullptr;
    if (token < tile.count) {
      const int64_t row = a.row_ids != nullptr ? a.row_ids[tile.begin + token] : tile.begin + token;
      rows[i] = a.x + row * a.x_stride + thread % 8 * 8;
    }
  }
  const auto load_stage = [&](int stage, int chunk) {
    const unsigned char* from = weights + static_cast<int64_t>(chunk) * kStripsPerBand * Fragments::kWords * 512;
    for (int i = 0; i < Fragments::kWords; ++i) {
      fl::cp_async<16>(fl::smem_addr(&smem.weights[stage][warp][i][lane]), from + i * 512);
    }
    for (int i = 0; i < kPieces; ++i) {
      const int token = (thread + i * kThreads) / 8;
      if (token >= kTokens) break;
      // Tokens that do not exist are zeros, read from nowhere.
      const uint16_t* source = rows[i] != nullptr ? rows[i] + static_cast<int64_t>(chunk) * kChunkCols : a.x;
      fl::cp_async<16>(fl::smem_addr(&smem.x[stage][token][thread % 8 * 8]), source, rows[i] != nullptr ? 16 : 0);
    }
  };

  const int first_chunk = kSplit ? static_cast<int>(blockIdx.z) * a.segment_chunks : 0;
  const int last_chunk =
      kSplit && first_chunk + a.segment_chunks < a.w.num_chunks ? first_chunk + a.segment_chunks : a.w.num_chunks;
  for (int i = 0; i < kStages - 1; ++i) {
    if (first_chunk + i < last_chunk) load_stage(i, first_chunk + i);
    fl::cp_async_commit();
  }

  Sums<kTiles> group, segment, total;
  group.clear();
  segment.clear();
  total.clear();
  fl::Vec<float, 2> scales{};
  ZeroPair zeros{};
  const uint32_t group_mask = (1u << a.w.group_shift) - 1;
  int left = a.segment_chunks;  // of the segment
  int stage = 0;
  for (int chunk = first_chunk; chunk < last_chunk; ++chunk) {
    fl::cp_async_wait<kStages - 2>();
    fl::sync_threads();  // the tokens of this stage are here, and everybody is done with the one before
    const int next = chunk + kStages - 1;
    if (next < last_chunk) load_stage(stage == 0 ? kStages - 1 : stage - 1, next);
    fl::cp_async_commit();

    Word words[Fragments::kWords];
    for (int i = 0; i < Fragments::kWords; ++i) words[i] = smem.weights[stage][warp][i][lane];
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      const int col = chunk * kChunkCols + step * 16;
      if constexpr (Fragments::kHasScales) {
        if ((static_cast<uint32_t>(col) & group_mask) == 0 || col == first_chunk * kChunkCols) {
          const int last = a.w.num_groups - 1;  // padded columns have no group of their own
          const int index_of_group = col >> a.w.group_shift < last ? col >> a.w.group_shift : last;
          const int64_t index = scale_index(a.w.num_groups, band * kBandRows + warp * kStripRows + g, index_of_group);
          scales = load_scales(a.w, expert, index);
          zeros = load_zeros<Fragments>(a.w, expert, index);
        }
      }
      uint32_t w[4];
      Fragments::load(w, words, step, zeros);
      Sums<kTiles>& sum = Fragments::kHasScales ? group : segment;
      // Two tiles of tokens at a time: matrices (tile, columns 0-7), (tile, 8-15), (tile + 1, 0-7), (tile + 1, 8-15).
      if constexpr (kTiles == 1) {
        uint32_t b[2];
        fl::ldmatrix(b, fl::smem_addr(&smem.x[stage][lane % 8][step * 16 + lane / 8 % 2 * 8]));
        Fragments::mma(sum.v[0], w, b);
      } else {
#pragma unroll
        for (int j = 0; j < kTiles; j += 2) {
          uint32_t b[4];
          fl::ldmatrix(b, fl::smem_addr(&smem.x[stage][(j + lane / 16) * 8 + lane % 8][step * 16 + lane / 8 % 2 * 8]));
          const uint32_t even[2] = {b[0], b[1]};
          const uint32_t odd[2] = {b[2], b[3]};
          Fragments::mma(sum.v[j], w, even);
          Fragments::mma(sum.v[j + 1], w, odd);
        }
      }
      if constexpr (Fragments::kHasScales) {
        const bool ends_segment = step == 3 && (left == 1 || chunk + 1 == last_chunk);
        if ((static_cast<uint32_t>(col + 16) & group_mask) == 0 || ends_segment) {
#pragma unroll
          for (int j = 0; j < kTiles; ++j) {
            for (int i = 0; i < 4; ++i) segment.v[j][i] = fmaf(scales[i / 2], group.v[j][i], segment.v[j][i]);
          }
          group.clear();
        }
      }
    }
    if (--left == 0 || chunk + 1 == last_chunk) {
      const bool is_first = chunk < first_chunk + a.segment_chunks;
      left = a.segment_chunks;
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        for (int i = 0; i < 4; ++i) total.v[j][i] = is_first ? segment.v[j][i] : total.v[j][i] + segment.v[j][i];
      }
      segment.clear();
    }
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  fl::cp_async_wait<0>();

  const auto row_of = [&](int i) { return band * kBandRows + warp * kStripRows + g + i / 2 * 8; };
  if constexpr (kSplit) {
    const int64_t slab = static_cast<int64_t>(a.num_rows) * a.w.n;
    float* partial = a.partials + blockIdx.z * slab;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      for (int i = 0; i < 4; ++i) {
        const int token = j * 8 + 2 * t + i % 2;
        if (token < tile.count && row_of(i) < a.w.n) {
          partial[static_cast<int64_t>(tile.begin + token) * a.w.n + row_of(i)] = total.v[j][i];
        }
      }
    }
    fl::fence_device();
    fl::sync_threads();
    uint32_t* ticket = a.tickets + static_cast<int64_t>(blockIdx.x) * gridDim.y + band;
    if (thread == 0) smem.is_last = fl::atomic_add(ticket, 1u) == gridDim.z - 1 ? 1 : 0;
    fl::sync_threads();
    if (smem.is_last == 0) return;
    fl::fence_device();
    if (thread == 0) *ticket = 0;
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      for (int i = 0; i < 4; ++i) {
        const int token = j * 8 + 2 * t + i % 2;
        if (token >= tile.count || row_of(i) >= a.w.n) continue;
        const float* p = a.partials + static_cast<int64_t>(tile.begin + token) * a.w.n + row_of(i);
        float sum = p[0];
        for (uint32_t s = 1; s < gridDim.z; ++s) sum += p[s * slab];
        total.v[j][i] = sum;
      }
    }
  }
  const float* bias = a.bias != nullptr ? a.bias + static_cast<int64_t>(tile.expert) * a.w.n : nullptr;
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    for (int i = 0; i < 4; ++i) {
      const int token = j * 8 + 2 * t + i % 2;
      if (token >= tile.count || row_of(i) >= a.w.n) continue;
      a.y[static_cast<int64_t>(tile.begin + token) * a.y_stride + row_of(i)] =
          total.v[j][i] + (bias != nullptr ? bias[row_of(i)] : 0.0f);
    }
  }
}

// Chunks of a segment: from the shape alone.
int64_t segment_chunks(int64_t n, int64_t num_chunks) {
  const int64_t bands = ceil_div(n, kBandRows);
  const int64_t wanted = ceil_div(kWantedCtas, bands);
  const int64_t chunks = round_up(ceil_div(num_chunks, wanted), 2);  // groups of up to 128 do not straddle
  return std::max(chunks, kMinSegmentCols / kChunkCols);
}

template <class Fragments, int kTokens>
void launch_gemm(fl::Stream& stream, const GemmCall& call, const GemmWorkspace& workspace) {
  GemmArgs args{};
  args.w = call.weight;
  args.x = static_cast<const uint16_t*>(call.x);
  args.x_stride = call.x_stride;
  args.num_rows = narrow<int32_t>(call.num_rows, "rows");
  args.bias = call.bias;
  args.y = call.y;
  args.y_stride = call.y_stride;
  args.row_ids = call.row_ids;
  args.tiles = call.tiles;
  args.num_tiles = call.num_tiles;
  args.partials = workspace.partials;
  args.tickets = workspace.tickets;
  args.segment_chunks = static_cast<int32_t>(segment_chunks(call.weight.n, call.weight.num_chunks));

  const int64_t num_tiles = call.tiles != nullptr ? call.max_tiles : ceil_div(call.num_rows, kTokens);
  const int64_t num_bands = ceil_div(call.weight.n, kBandRows);
  const int64_t num_segments = ceil_div(call.weight.num_chunks, args.segment_chunks);
  constexpr bool kMaySplit = kTokens <= kMaxSplitRows;
  const bool is_split = kMaySplit && num_segments > 1 && call.num_rows <= kMaxSplitRows;
  FASTLLM_CHECK(num_tiles <= INT32_MAX && num_bands <= 65535, "gemm: ", call.num_rows, " rows x ", call.weight.n,
                " outputs are more than a grid holds");
  const fl::Dim3 grid{static_cast<uint32_t>(num_tiles), static_cast<uint32_t>(num_bands),
                      is_split ? static_cast<uint32_t>(num_segments) : 1u};
  const auto bytes = static_cast<int64_t>(sizeof(Shared<Fragments, kTokens>));
  if (is_split) {
    FASTLLM_CHECK(num_segments * call.num_rows * call.weight.n <= workspace.partials_size &&
                      num_tiles * num_bands <= workspace.num_tickets,
                  "gemm: the workspace is too small for ", call.num_rows, " rows x ", call.weight.n, " outputs");
    fl::launch(stream, {"gemm_split", grid, kThreads, bytes}, gemm_kernel<Fragments, kTokens, kMaySplit>, args);
  } else {
    fl::launch(stream, {"gemm", grid, kThreads, bytes}, gemm_kernel<Fragments, kTokens, false>, args);
  }
}

template <class Fragments>
void launch_gemm(fl::Stream& stream, const GemmCall& call, const GemmWorkspace& workspace) {
  switch (tile_rows_of(call)) {
    case 8:
      return launch_gemm<Fragments, 8>(stream, call, workspace);
    case 16:
      return launch_gemm<Fragments, 16>(stream, call, workspace);
    case 32:
      return launch_gemm<Fragments, 32>(stream, call, workspace);
    case 64:
      return launch_gemm<Fragments, 64>(stream, call, workspace);
    default:
      fail(ErrorKind::kInternal, "gemm: no tile of ", call.tile_rows, " tokens");
  }
}

}  // namespace

int64_t gemm_partials(int64_t num_rows, int64_t max_features) {
  // A split has fewer than wanted / bands + 1 segments, so segments x N < (wanted + bands) x 128; none beyond `wanted`.
  const int64_t bands = std::min(ceil_div(max_features, kBandRows), kWantedCtas);
  return checked_mul(std::min(num_rows, kMaxSplitRows), (kWantedCtas + bands) * kBandRows, "gemm workspace");
}

int64_t gemm_tickets(int64_t max_tiles) {
  return checked_mul(std::min(max_tiles, kMaxSplitRows), kWantedCtas, "tickets");
}

void gemm(fl::Stream& stream, const GemmCall& call, const GemmWorkspace& workspace) {
  if (call.num_rows == 0) return;
  if (call.x_groups != nullptr) return gemm_codes(stream, call);
  switch (call.weight.format) {
    case WeightFormat::kF32:
      return gemm_f32(stream, call);
    case WeightFormat::kBF16:
      return launch_gemm<FloatFragments<false>>(stream, call, workspace);
    case WeightFormat::kF16:
      return launch_gemm<FloatFragments<true>>(stream, call, workspace);
    case WeightFormat::kInt8:
      return launch_gemm<Int8Fragments>(stream, call, workspace);
    case WeightFormat::kInt4:
      return launch_gemm<Int4Fragments>(stream, call, workspace);
    case WeightFormat::kE4M3:
      return launch_gemm<Fp8Fragments>(stream, call, workspace);
  }
}

}  // namespace fastllm::cuda
