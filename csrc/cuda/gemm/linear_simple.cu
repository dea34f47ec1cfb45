// y[m, n] = sum over k of x[m, k] W[n, k] + bias[n]        x [M, K] float32, W N x K (float formats), y [M, N]
//
// One thread per output, one sum over ascending k in float32: the plain version that the others are compared with.
// Defined by reference/linear.cpp; tested in tests/ops/test_dense.py.
#include "cuda/device_mat.h"
#include "cuda/kernels.h"
#include "cuda/layout.h"

namespace fastllm::cuda {
namespace {

constexpr uint32_t kThreads = 128;

template <class T>
struct LinearParams {
  DeviceMat x, y;
  const T* weight;
  const float* bias;  // or null
  int64_t pitch;
  int64_t n;
  int64_t k;
  int64_t count;
};

// registers: 64
template <class T>
__global__ void __launch_bounds__(kThreads) linear_simple_kernel(LinearParams<T> p) {
  const int64_t i = global_thread();
  if (i >= p.count) return;
  const int64_t m = i / p.n;
  const int64_t n = i % p.n;
  const float* x = p.x.row(m);
  const T* w = p.weight + n * p.pitch;
  float sum = 0.0f;
  for (int64_t k = 0; k < p.k; ++k) sum = fmaf(x[k], fl::to_float(w[k]), sum);
  if (p.bias != nullptr) sum += p.bias[n];
  p.y.row(m)[n] = sum;
}

}  // namespace

void linear(fl::Stream& stream, const LinearArgs& args, const Workspace&) {
  const WeightDesc& desc = args.weight->desc;
  with_device_type(dtype_of(desc.format), [&]<class T>(T) {
    const int64_t count = args.x.rows * desc.n;
    const LinearParams<T> p{device_mat(args.x),
                            device_mat(args.y),
                            reinterpret_cast<const T*>(args.weight->data),
                            args.bias,
                            row_pitch(desc),
                            desc.n,
                            desc.k,
                            count};
    fl::launch(stream, {"linear_simple", grid_for(count, kThreads), kThreads, 0}, linear_simple_kernel<T>, p);
  });
}

}  // namespace fastllm::cuda
