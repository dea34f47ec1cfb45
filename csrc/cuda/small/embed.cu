// out[t, e] = table[ids[t], e] * scale        ids [T], table V x E (float formats), out [T, E]
//
// One thread per output element. Bytes moved: T * E * (sizeof(table element) + 4).
// Defined by reference/memory.cpp; tested in tests/ops/test_dense.py.
#include "cuda/device_mat.h"
#include "cuda/kernels.h"
#include "cuda/layout.h"

namespace fastllm::cuda {
namespace {

constexpr uint32_t kThreads = 256;

template <class T>
struct EmbedParams {
  const int32_t* ids;
  const T* table;
  int64_t pitch;
  int64_t cols;
  int64_t count;
  DeviceMat out;
  float scale;
};

// registers: 32
template <class T>
__global__ void __launch_bounds__(kThreads) embed_kernel(EmbedParams<T> p) {
  const int64_t i = global_thread();
  if (i >= p.count) return;
  const int64_t t = i / p.cols;
  const int64_t e = i % p.cols;
  p.out.row(t)[e] = fl::to_float(p.table[p.ids[t] * p.pitch + e]) * p.scale;
}

}  // namespace

void embed(fl::Stream& stream, const EmbedArgs& args) {
  const WeightDesc& desc = args.table->desc;
  with_device_type(dtype_of(desc.format), [&]<class T>(T) {
    const int64_t count = args.num_tokens * args.out.cols;
    const EmbedParams<T> p{args.ids,        reinterpret_cast<const T*>(args.table->data),
                           row_pitch(desc), args.out.cols,
                           count,           device_mat(args.out),
                           args.scale};
    fl::launch(stream, {"embed", grid_for(count, kThreads), kThreads, 0}, embed_kernel<T>, p);
  });
}

}  // namespace fastllm::cuda
