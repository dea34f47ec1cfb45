// Mixture of experts on the device: routing, sorting tokens by expert, adding the experts' results. The products are
// gemm() with a list of tiles (gemm/gemm.h).
#pragma once

#include "cuda/fl/host.h"
#include "cuda/gemm/gemm.h"
#include "ops/ops.h"

namespace fastllm::cuda {

// Pointers of `args` are device memory. One warp per token.
void moe_route(fl::Stream& stream, const MoeRouteArgs& args);

// (token, choice) pairs sorted by expert, stably: slot i of an expert's run belongs to an earlier token than slot i
// + 1.
struct MoeSlots {
  int32_t* token_of = nullptr;  // [T * k] token of each slot
  int32_t* slot_of = nullptr;   // [T * k] slot of pair (token, choice)
  RowTile* tiles = nullptr;     // runs of up to tile_rows slots of one expert; experts without tokens have none
  int32_t* num_tiles = nullptr;
};
constexpr int64_t max_moe_tiles(int64_t num_pairs, int64_t num_experts, int64_t tile_rows) {
  const int64_t most = num_pairs / tile_rows + num_experts;
  return num_pairs < most ? num_pairs : most;
}
// `use` (device memory, [X], or nullptr) is added to; rows that pad a recorded step count, since they are computed too.
void moe_sort(fl::Stream& stream, const int32_t* experts, int64_t num_tokens, int64_t top_k, int64_t num_experts,
              int tile_rows, const MoeSlots& slots, ExpertUse* use);

// y[t] = sum over the choices of token t, by ascending slot (that is, expert), of weights[t, j] * from[slot].
void moe_combine(fl::Stream& stream, const float* from, const float* weights, const int32_t* slot_of,
                 int64_t num_tokens, int64_t top_k, int64_t num_cols, float* y, int64_t y_stride);

}  // namespace fastllm::cuda
