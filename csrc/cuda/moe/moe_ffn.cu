// y[t] = sum over the chosen experts, ascending, of weight * (down(act(gate_up(x[t]) + bias)) + bias).
//
// Seven launches per pass of up to moe_tokens tokens: sort the (token, choice) pairs by expert, round x, product with
// gate_up gathering the rows of x, gate in place, round, product with down, sum per token. Nothing is read back: the
// number of tiles is known to the kernels alone. Experts without tokens have no tile, so their weights are not read.
#include <algorithm>

#include "core/checked.h"
#include "core/error.h"
#include "cuda/kernels.h"

namespace fastllm::cuda {
namespace {

// Tokens of a tile: about the slots that an expert gets. A choice of speed, bits do not depend on it.
int tile_rows_for(int64_t num_slots, int64_t num_experts) {
  const int64_t average = ceil_div(num_slots, num_experts);
  return average <= 8 ? 8 : average <= 16 ? 16 : average <= 32 ? 32 : 64;
}

// Product of the slots with one of the experts' matrices. row_ids: rows of x by slot, or nullptr: x is [slots, K].
void multiply(fl::Stream& stream, const PackedWeight& weight, const float* bias, const Mat& x, const int32_t* row_ids,
              int64_t num_slots, int64_t max_tiles, int tile_rows, const Workspace& workspace, float* y) {
  GemmCall call;
  call.weight = view_of(weight);
  call.num_rows = num_slots;
  call.bias = bias;
  call.y = y;
  call.y_stride = weight.desc.n;
  call.row_ids = row_ids;
  call.tiles = workspace.slots.tiles;
  call.num_tiles = workspace.slots.num_tiles;
  call.max_tiles = max_tiles;
  call.tile_rows = tile_rows;
  load_activations(stream, x, workspace, call);
  gemm(stream, call, workspace.gemm);
}

}  // namespace

void moe_ffn(fl::Stream& stream, const MoeFfnArgs& args, const Workspace& workspace) {
  const int64_t num_experts = args.gate_up->desc.num_experts;
  const int64_t ffn_dim = args.down->desc.k;
  for (int64_t first = 0; first < args.x.rows; first += workspace.moe_tokens) {
    const int64_t num_tokens = std::min(workspace.moe_tokens, args.x.rows - first);
    const int64_t num_slots = num_tokens * args.top_k;
    const int tile_rows = tile_rows_for(num_slots, num_experts);
    const int64_t max_tiles = max_moe_tiles(num_slots, num_experts, tile_rows);
    moe_sort(stream, args.experts + first * args.top_k, num_tokens, args.top_k, num_experts, tile_rows, workspace.slots,
             args.use);

    const Mat x{args.x.row<float>(first), DType::kF32, num_tokens, args.x.cols, args.x.stride};
    multiply(stream, *args.gate_up, args.gate_up_bias, x, workspace.slots.token_of, num_slots, max_tiles, tile_rows,
             workspace, workspace.moe_gate_up);
    const Mat gate_up{workspace.moe_gate_up, DType::kF32, num_slots, 2 * ffn_dim, 2 * ffn_dim};
    const Mat activated = gate_up.columns(0, ffn_dim);  // over the gates, in place
    gated_activation(stream, {gate_up, args.activation, activated});
    multiply(stream, *args.down, args.down_bias, activated, nullptr, num_slots, max_tiles, tile_rows, workspace,
             workspace.moe_down);
    moe_combine(stream, workspace.moe_down, args.weights + first * args.top_k, workspace.slots.slot_of, num_tokens,
                args.top_k, args.y.cols, args.y.row<float>(first), args.y.stride);
  }
}

}  // namespace fastllm::cuda
