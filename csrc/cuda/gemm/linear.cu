// linear and embed of the contract on the products and tiles of this folder.
#include "core/checked.h"
#include "core/error.h"
#include "cuda/gemm/pack_weights.h"
#include "cuda/kernels.h"

namespace fastllm::cuda {

void load_activations(fl::Stream& stream, const Mat& x, const Workspace& workspace, GemmCall& call) {
  const WeightView& weight = call.weight;
  call.x = x.data;
  call.x_stride = x.stride;
  if (weight.format == WeightFormat::kF32) return;
  const int64_t padded_k = int64_t{weight.num_chunks} * kChunkCols;
  FASTLLM_CHECK(x.rows * padded_k <= workspace.converted_size, "linear: ", x.rows, " x ", padded_k,
                " activations are more than reserve() planned for");
  call.x = workspace.converted;
  if (has_codes(weight.format) && has_act_codes(weight.act)) {
    call.x_stride = padded_k * act_planes(weight.act);
    call.x_groups = workspace.act_groups;
    quantize_rows(stream, x.row<float>(0), x.stride, x.rows, weight.k, weight.act, weight.act_group(),
                  static_cast<uint8_t*>(workspace.converted), padded_k, workspace.act_groups);
    return;
  }
  call.x_stride = padded_k;
  convert_rows(stream, x.row<float>(0), x.stride, x.rows, weight.k, weight.format, workspace.converted, padded_k);
}

void linear(fl::Stream& stream, const LinearArgs& args, const Workspace& workspace) {
  GemmCall call;
  call.weight = view_of(*args.weight);
  call.num_rows = args.x.rows;
  call.bias = args.bias;
  call.y = args.y.row<float>(0);
  call.y_stride = args.y.stride;
  load_activations(stream, args.x, workspace, call);
  gemm(stream, call, workspace.gemm);
}

void embed(fl::Stream& stream, const EmbedArgs& args) {
  gather_rows(stream, view_of(*args.table), args.ids, args.num_tokens, args.scale, args.out.row<float>(0),
              args.out.stride);
}

}  // namespace fastllm::cuda
