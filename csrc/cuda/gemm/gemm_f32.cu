// y[m, n] = sum over k of x[m, k] * W[n, k] + bias[n] in float throughout: routers, gates, and models run in float32.
//
// One warp per output row of W and tile of 8 tokens, four tokens at a time, so that a row of W is read twice per tile.
// A lane adds columns lane, lane + 32, ... ascending, then the lanes are added in a fixed tree: the order depends on K
// alone. No tensor core; a model in float32 is for comparison, not for speed.
#include "core/checked.h"
#include "cuda/fl/gpu.h"
#include "cuda/gemm/gemm.h"
#include "cuda/gemm/tile_of_block.h"

namespace fastllm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int kTileRows = 8;
constexpr int kRowsAtOnce = 4;

struct GemmF32Args {
  WeightView w;
  const float* x;
  int64_t x_stride;
  int32_t num_rows;
  const float* bias;
  float* y;
  int64_t y_stride;
  const int32_t* row_ids;
  const RowTile* tiles;
  const int32_t* num_tiles;
};

// registers: 112
__global__ void __launch_bounds__(kThreads) gemm_f32_kernel(GemmF32Args a) {
  RowTile tile;
  if (!find_tile<kTileRows>(a, tile)) return;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int n = static_cast<int>(blockIdx.y) * kWarps + static_cast<int>(threadIdx.x) / 32;
  if (n >= a.w.n) return;  // a whole warp
  const float* w =
      reinterpret_cast<const float*>(a.w.data + tile.expert * a.w.expert_bytes) + static_cast<int64_t>(n) * a.w.k;
  const float bias = a.bias != nullptr ? a.bias[static_cast<int64_t>(tile.expert) * a.w.n + n] : 0.0f;
  for (int first = 0; first < tile.count; first += kRowsAtOnce) {
    const float* x[kRowsAtOnce];
    float sum[kRowsAtOnce];
    for (int i = 0; i < kRowsAtOnce; ++i) {
      const int row = tile.begin + (first + i < tile.count ? first + i : first);
      x[i] = a.x + (a.row_ids != nullptr ? a.row_ids[row] : row) * a.x_stride;
      sum[i] = 0.0f;
    }
    for (int k = lane; k < a.w.k; k += 32) {
      for (int i = 0; i < kRowsAtOnce; ++i) sum[i] = fmaf(w[k], x[i][k], sum[i]);
    }
    for (int i = 0; i < kRowsAtOnce; ++i) {
      for (int step = 16; step > 0; step /= 2) sum[i] += fl::shfl_xor(fl::kFullMask, sum[i], step);
      if (lane == 0 && first + i < tile.count) {
        a.y[static_cast<int64_t>(tile.begin + first + i) * a.y_stride + n] = sum[i] + bias;
      }
    }
  }
}

}  // namespace

void gemm_f32(fl::Stream& stream, const GemmCall& call) {
  const GemmF32Args args{call.weight,   static_cast<const float*>(call.x),
                         call.x_stride, narrow<int32_t>(call.num_rows, "rows"),
                         call.bias,     call.y,
                         call.y_stride, call.row_ids,
                         call.tiles,    call.num_tiles};
  const int64_t num_tiles = call.tiles != nullptr ? call.max_tiles : ceil_div(call.num_rows, kTileRows);
  const int64_t num_blocks = ceil_div(call.weight.n, kWarps);
  FASTLLM_CHECK(num_tiles <= INT32_MAX && num_blocks <= 65535, "gemm_f32: ", call.num_rows, " rows x ", call.weight.n,
                " outputs are more than a grid holds");
  fl::launch(stream, {"gemm_f32", {static_cast<uint32_t>(num_tiles), static_cast<uint32_t>(num_blocks)}, kThreads, 0},
             gemm_f32_kernel, args);
}

}  // namespace fastllm::cuda
