// Products with packed weights on the device: dense layers and the experts of a mixture.
#pragma once

#include "cuda/fl/host.h"
#include "cuda/gemm/act_codes.h"
#include "cuda/gemm/weight_tiles.h"

namespace fastllm::cuda {

// Rows [begin, begin + count) of a call that go to one expert; count is at most the tokens of a tile.
struct RowTile {
  int32_t expert;
  int32_t begin;
  int32_t count;
};

// x and y lie in device memory. Weights other than f32 take activations that convert_rows() or, where codes meet codes,
// quantize_rows() has written.
struct GemmCall {
  WeightView weight;
  const void* x = nullptr;             // [rows of x, x_stride]: f32, or 8 or 16 bits with K padded to 64 by zeros
  int64_t x_stride = 0;                // elements
  const ActGroup* x_groups = nullptr;  // of activations in codes
  int64_t num_rows = 0;                // of y (grouped: an upper bound)
  const float* bias = nullptr;         // [experts, N] or nullptr
  float* y = nullptr;
  int64_t y_stride = 0;
  // Experts: row i of y comes from row row_ids[i] of x (nullptr: i), and the tiles say which expert it belongs to.
  // Their number is only known on the device; max_tiles bounds it. row_ids and tiles are null for a dense layer.
  const int32_t* row_ids = nullptr;
  const RowTile* tiles = nullptr;
  const int32_t* num_tiles = nullptr;
  int64_t max_tiles = 0;
  int tile_rows = 0;  // tokens of a tile: 8, 16, 32 or 64; 0: chosen from num_rows
};

inline int tile_rows_of(const GemmCall& call) {
  if (call.tile_rows != 0) return call.tile_rows;
  return call.num_rows <= 8 ? 8 : call.num_rows <= 16 ? 16 : call.num_rows <= 32 ? 32 : 64;
}

// Memory between calls, made once. Tickets are zero, and a call leaves them so.
struct GemmWorkspace {
  float* partials = nullptr;
  int64_t partials_size = 0;  // floats
  uint32_t* tickets = nullptr;
  int64_t num_tickets = 0;
};

// What calls of up to `num_rows` rows and N <= max_features may need.
int64_t gemm_partials(int64_t num_rows, int64_t max_features);
int64_t gemm_tickets(int64_t max_tiles);

void gemm(fl::Stream& stream, const GemmCall& call, const GemmWorkspace& workspace);
void gemm_f32(fl::Stream& stream, const GemmCall& call);    // what gemm() does for f32 weights
void gemm_codes(fl::Stream& stream, const GemmCall& call);  // and for activations in codes

// out[row, k] = x[row, k] in the type that `format` multiplies with (f16 for f16, else bf16); columns K..padded_k are
// 0.
void convert_rows(fl::Stream& stream, const float* x, int64_t x_stride, int64_t num_rows, int64_t k,
                  WeightFormat format, void* out, int64_t padded_k);

}  // namespace fastllm::cuda
