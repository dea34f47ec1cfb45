// gated_activation: y = act(gate) * up        gate_up [T, 2F], y [T, F]
// add:              residual += x * (gate ? sigmoid(gate[t]) : 1)        residual, x [T, E], gate [T, 1]
// softcap:          x = cap * tanh(x / cap)
//
// One thread per output element; nothing is summed. Bytes moved: three, three and two floats per element.
// Defined by reference/elementwise.cpp; tested in tests/ops/test_dense.py.
#include "cuda/activation.h"
#include "cuda/device_mat.h"
#include "cuda/kernels.h"

namespace fastllm::cuda {
namespace {

constexpr uint32_t kThreads = 256;

struct GatedParams {
  DeviceMat gate_up, y;
  int64_t cols;
  int64_t count;
  float alpha, limit;
};

// registers: 40
template <Activation Kind>
__global__ void __launch_bounds__(kThreads) gated_activation_kernel(GatedParams p) {
  const int64_t i = global_thread();
  if (i >= p.count) return;
  const int64_t t = i / p.cols;
  const int64_t f = i % p.cols;
  const float* both = p.gate_up.row(t);
  p.y.row(t)[f] = gated<Kind>(both[f], both[p.cols + f], p.alpha, p.limit);
}

struct AddParams {
  DeviceMat residual, x, gate;  // gate.data may be null
  int64_t cols;
  int64_t count;
};

// registers: 40
__global__ void __launch_bounds__(kThreads) add_kernel(AddParams p) {
  const int64_t i = global_thread();
  if (i >= p.count) return;
  const int64_t t = i / p.cols;
  const int64_t e = i % p.cols;
  const float gate = p.gate.data != nullptr ? sigmoid(p.gate.row(t)[0]) : 1.0f;
  p.residual.row(t)[e] = fmaf(gate, p.x.row(t)[e], p.residual.row(t)[e]);
}

struct SoftcapParams {
  DeviceMat x;
  int64_t cols;
  int64_t count;
  float cap;
};

// registers: 40
__global__ void __launch_bounds__(kThreads) softcap_kernel(SoftcapParams p) {
  const int64_t i = global_thread();
  if (i >= p.count) return;
  float& x = p.x.row(i / p.cols)[i % p.cols];
  x = p.cap * tanhf(x / p.cap);
}

}  // namespace

void gated_activation(fl::Stream& stream, const GatedActivationArgs& args) {
  const int64_t count = args.y.rows * args.y.cols;
  const GatedParams p{device_mat(args.gate_up), device_mat(args.y),   args.y.cols, count,
                      args.activation.alpha,    args.activation.limit};
  with_activation(args.activation.kind, [&](auto kind) {
    fl::launch(stream, {"gated_activation", grid_for(count, kThreads), kThreads, 0},
               gated_activation_kernel<decltype(kind)::value>, p);
  });
}

void add(fl::Stream& stream, const AddArgs& args) {
  const int64_t count = args.residual.rows * args.residual.cols;
  const AddParams p{device_mat(args.residual), device_mat(args.x), device_mat(args.gate), args.residual.cols, count};
  fl::launch(stream, {"add", grid_for(count, kThreads), kThreads, 0}, add_kernel, p);
}

void softcap(fl::Stream& stream, const SoftcapArgs& args) {
  const int64_t count = args.x.rows * args.x.cols;
  const SoftcapParams p{device_mat(args.x), args.x.cols, count, args.cap};
  fl::launch(stream, {"softcap", grid_for(count, kThreads), kThreads, 0}, softcap_kernel, p);
}

}  // namespace fastllm::cuda
