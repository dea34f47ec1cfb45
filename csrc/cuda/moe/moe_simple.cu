// y[t] = sum over the chosen experts, ascending, of weight * (down(act(gate_up(x[t]) + bias)) + bias).
//       x, y [T, E]; experts, weights [T, k]; gate_up X experts of 2F x E; down X experts of E x F
//
// Two launches, one thread per output: first the activated features of every (token, chosen expert) pair into the
// workspace [T * k, F], then the weighted sum. The plain version that the others are compared with; it reads the
// weights of an expert once per token. Sums run over ascending k, then over ascending expert index.
// Defined by reference/moe.cpp; tested in tests/ops/test_moe.py.
#include "cuda/activation.h"
#include "cuda/device_mat.h"
#include "cuda/kernels.h"
#include "cuda/layout.h"

namespace fastllm::cuda {
namespace {

constexpr uint32_t kThreads = 128;

template <class T>
__device__ inline float dot(const float* x, const T* w, int64_t k) {
  float sum = 0.0f;
  for (int64_t i = 0; i < k; ++i) sum = fmaf(x[i], fl::to_float(w[i]), sum);
  return sum;
}

template <class T>
struct Experts {
  const T* weight;
  const float* bias;  // [X, n] or null
  int64_t pitch;
  int64_t n;
  int64_t k;
  __device__ float output(int64_t expert, int64_t row, const float* x) const {
    const float sum = dot(x, weight + (expert * n + row) * pitch, k);
    return bias != nullptr ? sum + bias[expert * n + row] : sum;
  }
};
template <class T>
Experts<T> experts_of(const PackedWeight& w, const float* bias) {
  return {reinterpret_cast<const T*>(w.data), bias, row_pitch(w.desc), w.desc.n, w.desc.k};
}

template <class T>
struct MoeParams {
  DeviceMat x, y;
  const int32_t* experts;
  const float* weights;
  Experts<T> gate_up, down;
  float* hidden;
  int64_t ffn_dim;
  int64_t count;
  int32_t top_k;
  float alpha, limit;
};

// registers: 64
template <class T, Activation Kind>
__global__ void __launch_bounds__(kThreads) moe_hidden_kernel(MoeParams<T> p) {
  const int64_t i = global_thread();
  if (i >= p.count) return;
  const int64_t pair = i / p.ffn_dim;
  const int64_t f = i % p.ffn_dim;
  const float* x = p.x.row(pair / p.top_k);
  const int64_t expert = p.experts[pair];
  const float gate = p.gate_up.output(expert, f, x);
  const float up = p.gate_up.output(expert, p.ffn_dim + f, x);
  p.hidden[i] = gated<Kind>(gate, up, p.alpha, p.limit);
}

// registers: 64
template <class T>
__global__ void __launch_bounds__(kThreads) moe_combine_kernel(MoeParams<T> p) {
  const int64_t i = global_thread();
  if (i >= p.count) return;
  const int64_t t = i / p.down.n;
  const int64_t e = i % p.down.n;
  const int32_t* experts = p.experts + t * p.top_k;
  float sum = 0.0f;
  int32_t last = -1;
  for (int32_t round = 0; round < p.top_k; ++round) {
    // The choice that follows `last` by expert, then by place.
    const auto is_before = [&](int32_t a, int32_t b) {
      return experts[a] < experts[b] || (experts[a] == experts[b] && a < b);
    };
    int32_t next = -1;
    for (int32_t j = 0; j < p.top_k; ++j) {
      if ((last < 0 || is_before(last, j)) && (next < 0 || is_before(j, next))) next = j;
    }
    last = next;
    const int64_t pair = t * p.top_k + next;
    sum = fmaf(p.weights[pair], p.down.output(experts[next], e, p.hidden + pair * p.ffn_dim), sum);
  }
  p.y.row(t)[e] = sum;
}

}  // namespace

void moe_ffn(fl::Stream& stream, const MoeFfnArgs& args, const Workspace& workspace) {
  with_device_type(dtype_of(args.gate_up->desc.format), [&]<class T>(T) {
    MoeParams<T> p{device_mat(args.x),
                   device_mat(args.y),
                   args.experts,
                   args.weights,
                   experts_of<T>(*args.gate_up, args.gate_up_bias),
                   experts_of<T>(*args.down, args.down_bias),
                   workspace.moe_hidden,
                   args.down->desc.k,
                   args.x.rows * args.top_k * args.down->desc.k,
                   narrow<int32_t>(args.top_k),
                   args.activation.alpha,
                   args.activation.limit};
    with_activation(args.activation.kind, [&](auto kind) {
      fl::launch(stream, {"moe_hidden", grid_for(p.count, kThreads), kThreads, 0},
                 moe_hidden_kernel<T, decltype(kind)::value>, p);
    });
    p.count = args.y.rows * args.y.cols;
    fl::launch(stream, {"moe_combine", grid_for(p.count, kThreads), kThreads, 0}, moe_combine_kernel<T>, p);
  });
}

}  // namespace fastllm::cuda
