// out[row, k] = x[row, k] rounded to bf16 or f16; columns from K to padded_k become 0.
// One thread per 8 columns of a row: 32 bytes read, one 16-byte store.
#include "core/checked.h"
#include "cuda/fl/gpu.h"
#include "cuda/gemm/gemm.h"

namespace fastllm::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kPerThread = 8;

struct ConvertArgs {
  const float* x;
  int64_t x_stride;
  int64_t num_rows;
  int64_t k;
  uint16_t* out;
  int64_t padded_k;
  bool is_half;
};

// registers: 40
__global__ void __launch_bounds__(kThreads) convert_rows_kernel(ConvertArgs a) {
  const int64_t pieces = a.padded_k / kPerThread;
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (unit >= a.num_rows * pieces) return;
  const int64_t row = unit / pieces;
  const int64_t first = unit % pieces * kPerThread;
  const float* x = a.x + row * a.x_stride;
  fl::Vec<uint16_t, kPerThread> out;
  for (int i = 0; i < kPerThread; ++i) {
    const float value = first + i < a.k ? x[first + i] : 0.0f;
    out[i] = a.is_half ? fl::to_f16(value).bits : fl::to_bf16(value).bits;
  }
  *reinterpret_cast<fl::Vec<uint16_t, kPerThread>*>(a.out + row * a.padded_k + first) = out;
}

}  // namespace

void convert_rows(fl::Stream& stream, const float* x, int64_t x_stride, int64_t num_rows, int64_t k,
                  WeightFormat format, void* out, int64_t padded_k) {
  const ConvertArgs args{x, x_stride, num_rows, k, static_cast<uint16_t*>(out), padded_k, format == WeightFormat::kF16};
  const int64_t blocks = ceil_div(num_rows * (padded_k / kPerThread), kThreads);
  FASTLLM_CHECK(blocks <= INT32_MAX, "convert_rows: ", num_rows, " rows x ", k, " are more than a grid holds");
  fl::launch(stream, {"convert_rows", {static_cast<uint32_t>(blocks)}, kThreads, 0}, convert_rows_kernel, args);
}

}  // namespace fastllm::cuda
