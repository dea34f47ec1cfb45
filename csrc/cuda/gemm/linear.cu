// linear and embed of the contract on the products and tiles of this folder.
#include "core/checked.h"
#include "core/error.h"
#include "cuda/gemm/pack_weights.h"
#include "cuda/kernels.h"

namespace fastllm::cuda {

void linear(fl::Stream& stream, const LinearArgs& args, const Workspace& workspace) {
  GemmCall call;
  call.weight = view_of(*args.weight);
  call.x = args.x.data;
  call.x_stride = args.x.stride;
  call.num_rows = args.x.rows;
  call.bias = args.bias;
  call.y = args.y.row<float>(0);
  call.y_stride = args.y.stride;
  if (args.weight->desc.format != WeightFormat::kF32) {
    const int64_t padded_k = int64_t{call.weight.num_chunks} * kChunkCols;
    FASTLLM_CHECK(args.x.rows * padded_k <= workspace.converted_size, "linear: ", args.x.rows, " x ", padded_k,
                  " activations are more than reserve() planned for");
    convert_rows(stream, args.x.row<float>(0), args.x.stride, args.x.rows, args.x.cols, args.weight->desc.format,
                 workspace.converted, padded_k);
    call.x = workspace.converted;
    call.x_stride = padded_k;
  }
  gemm(stream, call, workspace.gemm);
}

void embed(fl::Stream& stream, const EmbedArgs& args) {
  gather_rows(stream, view_of(*args.table), args.ids, args.num_tokens, args.scale, args.out.row<float>(0),
              args.out.stride);
}

}  // namespace fastllm::cuda
