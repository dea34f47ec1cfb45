// Kernels without a use but for their speed: reading memory, and mma.sync on registers.
#include "ceilings.h"
#include "core/checked.h"
#include "cuda/fl/gpu.h"
#include "cuda/fl/launch.h"

namespace fastllm::bench {
namespace {

constexpr uint32_t kReadThreads = 512;
constexpr uint32_t kReadBlocks = 2048;  // times 512 threads, 4 loads and 16 bytes: 64 MiB, which must divide `bytes`

struct ReadParams {
  const fl::Vec<uint32_t, 4>* from;
  int64_t count;
  uint32_t* sink;
};

__global__ void __launch_bounds__(kReadThreads) read_kernel(ReadParams p) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kReadThreads;
  uint32_t sum = 0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kReadThreads + threadIdx.x; i + 3 * step < p.count;
       i += 4 * step) {
    fl::Vec<uint32_t, 4> x[4];  // on their way at once
#pragma unroll
    for (int u = 0; u < 4; ++u) x[u] = fl::load_stream(p.from + i + u * step);
#pragma unroll
    for (int u = 0; u < 4; ++u) sum |= x[u][0] ^ x[u][1] ^ x[u][2] ^ x[u][3];
  }
  if (sum == 0x9e3779b9u) *p.sink = sum;  // never, and the compiler cannot know
}

struct MmaParams {
  int32_t rounds;
  uint32_t* sink;
};

__global__ void __launch_bounds__(kMmaWarps * 32) mma_kernel(MmaParams p) {
  const uint32_t a[4] = {fl::lane_id(), 1, 2, 3};
  float sums[kMmasPerRound][4] = {};  // one each: none waits for another
  for (int32_t i = 0; i < p.rounds; ++i) {
#pragma unroll
    for (int m = 0; m < kMmasPerRound; ++m) {
      const uint32_t b[2] = {fl::lane_id(), static_cast<uint32_t>(m)};  // or the compiler does one for all
      fl::mma_bf16(sums[m], a, b);
    }
  }
  float all = 0.0f;
#pragma unroll
  for (int m = 0; m < kMmasPerRound; ++m) all += sums[m][0] + sums[m][1] + sums[m][2] + sums[m][3];
  if (all == 0.5f) *p.sink = 1;  // never, and the compiler cannot know
}

}  // namespace

void launch_read(fl::Stream& stream, const void* from, int64_t bytes, uint32_t* sink) {
  const ReadParams p{static_cast<const fl::Vec<uint32_t, 4>*>(from), bytes / 16, sink};
  fl::launch(stream, {"read", {kReadBlocks}, kReadThreads}, read_kernel, p);
}

void launch_mma(fl::Stream& stream, int64_t num_blocks, int rounds, uint32_t* sink) {
  const MmaParams p{rounds, sink};
  fl::launch(stream, {"mma", {narrow<uint32_t>(num_blocks)}, kMmaWarps * 32}, mma_kernel, p);
}

}  // namespace fastllm::bench
