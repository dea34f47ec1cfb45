// y[m, n] = sum over k of x[m, k] * W[n, k] + bias[n], codes times codes: integer weights with activations in integers
// (a8, a8r, a15), fp8 with fp8. The accumulator of ActMode in ops/weights.h, step by step.
//       dot = sum over a group of code * a - zero * sum of a              exact in int32, whatever the order
//       fp8:  sum over a group of code * a, in float32 as the tensor cores add, 32 columns at a time, ascending
//       acc = fma(float(dot) * s, scale, acc), groups ascending           whole rows: fma(float(dot), s, acc) * scale
// So the bits of integers are those of every backend. Those of fp8 are the same for every batch, tile and neighbour.
//
// Output rows of W on M of the tensor core (m16n8k32; unsigned times signed bytes, or e4m3), tokens on N, as in
// gemm.cu, and the same tiles of weights: in a step of 32 columns a lane has rows g and g + 8, columns 2t, 2t + 1, 2t +
// 8, 2t + 9 of both micro-tiles; the four bytes of each become a register, and activations lie in the same order
// (act_codes.h). Codes stay unsigned; what the zero takes away is one multiplication per group, the sum of the
// activations being there.
//
// CTA = 16 kWarps rows of W x 8, 16, 32 or 64 tokens, walking over all of K: the chain of multiply-adds allows no
// split. Few tokens take two warps, so that a matrix of 4096 rows is 128 CTAs. A stage is a chunk of 64 columns:
// weights by the lane that uses them, tokens (64 bytes a plane, at an odd number of 16-byte units) and their groups by
// all.
//
// Bytes: N * K * bits / 8 once per tile of tokens. Defined by reference/int_linear.cpp; tested in
// tests/ops/test_int_weights.py (bits), test_fp8_weights.py and tests/native/gemm_cuda_test.cpp (orders).
#include <type_traits>

#include "core/checked.h"
#include "core/error.h"
#include "cuda/fl/gpu.h"
#include "cuda/gemm/gemm.h"
#include "cuda/gemm/load_scales.h"
#include "cuda/gemm/tile_of_block.h"

namespace fastllm::cuda {
namespace {

struct GemmCodesArgs {
  WeightView w;
  const uint8_t* x;
  const ActGroup* x_groups;
  int64_t x_stride;  // bytes of a row, all planes
  int32_t num_rows;
  int32_t num_act_groups;
  const float* bias;
  float* y;
  int64_t y_stride;
  const int32_t* row_ids;
  const RowTile* tiles;
  const int32_t* num_tiles;
};

template <int kTokens>
constexpr int kWarpsOf = kTokens <= 16 ? 2 : 8;
// CTAs that a processor must hold: leaves a thread 128 registers, or all where it has many sums.
template <int kPlanes, int kTokens>
constexpr int kMinCtas = kTokens <= 16                   ? 8
                         : kPlanes == 1 && kTokens == 32 ? 2
                                                         : 1;

template <WeightFormat kFormat, int kPlanes, int kTokens>
struct Shared {
  static constexpr int kWarps = kWarpsOf<kTokens>;
  static constexpr int kStages = kWarps == 2 ? 8 : 4;
  static constexpr int kWords = words_per_chunk(kFormat);
  static constexpr int kPitch = kPlanes * kChunkCols + 16;
  fl::Vec<uint32_t, 4> weights[kStages][kWarps][kWords][32];
  alignas(16) uint8_t x[kStages][kTokens][kPitch];
  ActGroup groups[kStages][kTokens][2];  // of columns 0-31 and 32-63 of the chunk
};

// The operand of 32 columns (step 0 or 1) from the words of a chunk: rows g and g + 8 of two micro-tiles.
template <WeightFormat kFormat, int kWords>
__device__ inline void load_codes(uint32_t (&a)[4], const fl::Vec<uint32_t, 4> (&words)[kWords], int step) {
  for (int i = 0; i < 2; ++i) {
    if constexpr (kFormat != WeightFormat::kInt4) {
      const uint32_t low = words[step][2 * i];  // columns 2t, 2t + 1: of row g, of row g + 8
      const uint32_t high = words[step][2 * i + 1];
      a[2 * i] = fl::prmt(low, high, 0x5410u);
      a[2 * i + 1] = fl::prmt(low, high, 0x7632u);
    } else {
      const uint32_t codes = words[0][2 * step + i];
      a[2 * i] = fl::prmt(codes & 0x0f0f0f0fu, 0u, 0x3120u);
      a[2 * i + 1] = fl::prmt((codes >> 4) & 0x0f0f0f0fu, 0u, 0x3120u);
    }
  }
}

// Sums of products: of integers, exact, or of e4m3.
template <WeightFormat kFormat>
using Dot = std::conditional_t<kFormat == WeightFormat::kE4M3, float, int32_t>;

__device__ inline void mma(int32_t (&d)[4], const uint32_t (&w)[4], const uint32_t (&x)[2]) { fl::mma_u8s8(d, w, x); }
__device__ inline void mma(float (&d)[4], const uint32_t (&w)[4], const uint32_t (&x)[2]) { fl::mma_e4m3(d, w, x); }

// registers: 232
template <WeightFormat kFormat, int kPlanes, int kTokens>
__global__ void __launch_bounds__(32 * kWarpsOf<kTokens>, kMinCtas<kPlanes, kTokens>)
    gemm_codes_kernel(GemmCodesArgs a) {
  using Smem = Shared<kFormat, kPlanes, kTokens>;
  constexpr int kWarps = Smem::kWarps;
  constexpr int kStages = Smem::kStages;
  constexpr int kThreads = 32 * kWarps;
  constexpr int kTiles = kTokens / 8;
  constexpr int kPieces = kPlanes * kChunkCols / 16;  // of 16 bytes, of a token
  Smem& smem = *fl::smem<Smem>();

  RowTile tile;
  if (!find_tile<kTokens>(a, tile)) return;
  const int thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32;
  const int lane = thread % 32;
  const int g = lane / 4;
  const int t = lane % 4;
  const int strip = static_cast<int>(blockIdx.y) * kWarps + warp;
  const int first_row = strip * kStripRows;
  const unsigned char* expert = a.w.data + tile.expert * a.w.expert_bytes;
  const int act_shift = a.w.group_shift > 7 ? 6 : a.w.group_shift;  // whole rows: groups of 64

  const int64_t chunk_stride = kStripsPerBand * Smem::kWords * 512;
  const unsigned char* weights = expert + strip / kStripsPerBand * a.w.num_chunks * chunk_stride +
                                 strip % kStripsPerBand * Smem::kWords * 512 + lane * 16;
  const auto row_of_token = [&](int token) -> int64_t {
    return a.row_ids != nullptr ? a.row_ids[tile.begin + token] : tile.begin + token;
  };
  const auto load_stage = [&](int stage, int chunk) {
    const unsigned char* from = weights + chunk * chunk_stride;
    for (int i = 0; i < Smem::kWords; ++i) {
      fl::cp_async<16>(fl::smem_addr(&smem.weights[stage][warp][i][lane]), from + i * 512);
    }
    // Tokens and groups that do not exist are zeros, read from nowhere.
    for (int i = thread; i < kTokens * kPieces; i += kThreads) {
      const int token = i / kPieces;
      const int piece = i % kPieces;
      const bool is_there = token < tile.count;
      const uint8_t* x = a.x;
      if (is_there) {
        x +=
            row_of_token(token) * a.x_stride + piece / 4 * (a.x_stride / kPlanes) + chunk * kChunkCols + piece % 4 * 16;
      }
      fl::cp_async<16>(fl::smem_addr(&smem.x[stage][token][16 * piece]), x, is_there ? 16 : 0);
    }
    for (int i = thread; i < kTokens * 2; i += kThreads) {
      const int token = i / 2;
      const int group = (chunk * kChunkCols + i % 2 * 32) >> act_shift;
      const bool is_there = token < tile.count && group < a.num_act_groups;
      const ActGroup* from_group =
          a.x_groups + (is_there ? row_of_token(token) * a.num_act_groups + group : int64_t{0});
      fl::cp_async<16>(fl::smem_addr(&smem.groups[stage][token][i % 2]), from_group, is_there ? 16 : 0);
    }
  };
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < a.w.num_chunks) load_stage(i, i);
    fl::cp_async_commit();
  }

  float acc[kTiles][4];
  Dot<kFormat> dot[kPlanes][kTiles][4];
  const auto clear_dots = [&] {
#pragma unroll
    for (int p = 0; p < kPlanes; ++p) {
#pragma unroll
      for (int j = 0; j < kTiles; ++j) {
        for (int i = 0; i < 4; ++i) dot[p][j][i] = {};
      }
    }
  };
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    for (int i = 0; i < 4; ++i) acc[j][i] = 0.0f;
  }
  clear_dots();
  const bool has_groups = a.w.group_shift <= 7;
  fl::Vec<float, 2> scales{};
  int32_t zeros[2] = {};
  const auto end_group = [&](int stage, int step) {
#pragma unroll
    for (int j = 0; j < kTiles; ++j) {
      for (int c = 0; c < 2; ++c) {
        const ActGroup group = smem.groups[stage][8 * j + 2 * t + c][step];
        for (int r = 0; r < 2; ++r) {
          const int i = 2 * r + c;
          const auto add = [&](auto sum, float s) {
            const auto value = static_cast<float>(sum);
            acc[j][i] = has_groups ? fmaf(value * s, scales[r], acc[j][i]) : fmaf(value, s, acc[j][i]);
          };
          if constexpr (kFormat == WeightFormat::kE4M3) {
            add(dot[0][j][i], group.scale);
          } else if constexpr (kPlanes == 1) {
            add(dot[0][j][i] - zeros[r] * group.sum, group.scale);
          } else if (a.w.act == ActMode::kA15) {
            add(128 * dot[0][j][i] + dot[1][j][i] - zeros[r] * group.sum, group.scale);
          } else {
            add(dot[0][j][i] - zeros[r] * group.sum, group.scale);
            if (group.remainder_scale != 0.0f) {
              add(dot[1][j][i] - zeros[r] * group.remainder_sum, group.remainder_scale);
            }
          }
        }
      }
    }
    clear_dots();
  };

  int stage = 0;
  for (int chunk = 0; chunk < a.w.num_chunks; ++chunk) {
    fl::cp_async_wait<kStages - 2>();
    fl::sync_threads();  // the tokens of this stage are here, and everybody is done with the one before
    const int next = chunk + kStages - 1;
    if (next < a.w.num_chunks) load_stage(stage == 0 ? kStages - 1 : stage - 1, next);
    fl::cp_async_commit();

    fl::Vec<uint32_t, 4> words[Smem::kWords];
    for (int i = 0; i < Smem::kWords; ++i) words[i] = smem.weights[stage][warp][i][lane];
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      const int col = chunk * kChunkCols + step * 32;
      const int act_group = col >> act_shift;
      if (act_group >= a.num_act_groups) break;  // columns of padding, with no group
      const bool begins_group = (act_group << act_shift) == col;
      if (begins_group && (has_groups || col == 0)) {
        const int64_t index = scale_index(a.w.num_groups, first_row + g, has_groups ? act_group : 0);
        scales = load_scales(a.w, expert, index);
        zeros[0] = zeros[1] = kFormat == WeightFormat::kInt8 ? 128 : 8;
        if (a.w.zero_offset != 0) {
          zeros[0] = expert[a.w.zero_offset + index];
          zeros[1] = expert[a.w.zero_offset + index + 1];
        }
      }
      uint32_t w[4];
      load_codes<kFormat>(w, words, step);
#pragma unroll
      for (int p = 0; p < kPlanes; ++p) {
        // Matrices: columns 0-15 and 16-31 of this step, of one or two tiles of tokens.
        if constexpr (kTiles == 1) {
          uint32_t b[2];
          fl::ldmatrix(b, fl::smem_addr(&smem.x[stage][lane % 8][p * kChunkCols + step * 32 + lane / 8 % 2 * 16]));
          mma(dot[p][0], w, b);
        } else {
#pragma unroll
          for (int j = 0; j < kTiles; j += 2) {
            uint32_t b[4];
            const int token = (j + lane / 16) * 8 + lane % 8;
            fl::ldmatrix(b, fl::smem_addr(&smem.x[stage][token][p * kChunkCols + step * 32 + lane / 8 % 2 * 16]));
            const uint32_t even[2] = {b[0], b[1]};
            const uint32_t odd[2] = {b[2], b[3]};
            mma(dot[p][j], w, even);
            mma(dot[p][j + 1], w, odd);
          }
        }
      }
      const int next_group = (col + 32) >> act_shift;
      const bool is_last = chunk + 1 == a.w.num_chunks && step == 1;
      if (next_group != act_group || is_last) end_group(stage, step);
    }
    stage = stage + 1 == kStages ? 0 : stage + 1;
  }
  fl::cp_async_wait<0>();

  const float* bias = a.bias != nullptr ? a.bias + static_cast<int64_t>(tile.expert) * a.w.n : nullptr;
#pragma unroll
  for (int j = 0; j < kTiles; ++j) {
    for (int i = 0; i < 4; ++i) {
      const int token = j * 8 + 2 * t + i % 2;
      const int row = first_row + g + i / 2 * 8;
      if (token >= tile.count || row >= a.w.n) continue;
      const float value = has_groups ? acc[j][i] : acc[j][i] * scales[i / 2];
      a.y[static_cast<int64_t>(tile.begin + token) * a.y_stride + row] = bias != nullptr ? value + bias[row] : value;
    }
  }
}

template <WeightFormat kFormat, int kPlanes, int kTokens>
void launch(fl::Stream& stream, const GemmCodesArgs& args, const GemmCall& call) {
  using Smem = Shared<kFormat, kPlanes, kTokens>;
  const int64_t num_tiles = call.tiles != nullptr ? call.max_tiles : ceil_div(call.num_rows, kTokens);
  const int64_t num_strips = ceil_div(call.weight.n, Smem::kWarps * kStripRows);
  FASTLLM_CHECK(num_tiles <= INT32_MAX && num_strips <= 65535, "gemm: ", call.num_rows, " rows x ", call.weight.n,
                " outputs are more than a grid holds");
  const fl::Dim3 grid{static_cast<uint32_t>(num_tiles), static_cast<uint32_t>(num_strips), 1};
  fl::launch(stream, {"gemm_codes", grid, 32 * Smem::kWarps, static_cast<int64_t>(sizeof(Smem))},
             gemm_codes_kernel<kFormat, kPlanes, kTokens>, args);
}

template <WeightFormat kFormat, int kPlanes>
void launch(fl::Stream& stream, const GemmCodesArgs& args, const GemmCall& call) {
  switch (tile_rows_of(call)) {
    case 8:
      return launch<kFormat, kPlanes, 8>(stream, args, call);
    case 16:
      return launch<kFormat, kPlanes, 16>(stream, args, call);
    case 32:
      return launch<kFormat, kPlanes, 32>(stream, args, call);
    default:
      return launch<kFormat, kPlanes, 64>(stream, args, call);
  }
}

template <WeightFormat kFormat>
void launch_int(fl::Stream& stream, const GemmCodesArgs& args, const GemmCall& call) {
  if (act_planes(call.weight.act) == 1) return launch<kFormat, 1>(stream, args, call);
  launch<kFormat, 2>(stream, args, call);
}

}  // namespace

void gemm_codes(fl::Stream& stream, const GemmCall& call) {
  GemmCodesArgs args{};
  args.w = call.weight;
  args.x = static_cast<const uint8_t*>(call.x);
  args.x_groups = call.x_groups;
  args.x_stride = call.x_stride;
  args.num_rows = narrow<int32_t>(call.num_rows, "rows");
  args.num_act_groups = static_cast<int32_t>(ceil_div(call.weight.k, call.weight.act_group()));
  args.bias = call.bias;
  args.y = call.y;
  args.y_stride = call.y_stride;
  args.row_ids = call.row_ids;
  args.tiles = call.tiles;
  args.num_tiles = call.num_tiles;
  if (call.weight.format == WeightFormat::kE4M3) return launch<WeightFormat::kE4M3, 1>(stream, args, call);
  if (call.weight.format == WeightFormat::kInt8) return launch_int<WeightFormat::kInt8>(stream, args, call);
  launch_int<WeightFormat::kInt4>(stream, args, call);
}

}  // namespace fastllm::cuda
