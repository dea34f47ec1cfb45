// y = x / sqrt(mean(x^2) + eps) * (weight + offset) in groups of columns; with a residual, x + residual in place of x,
// and the residual becomes that sum unless rows are chosen by id.       x, residual [T, E]; weight [group]; y [T or R,
// E]
//
// One block per (row, group): one warp for small groups (q/k norms), eight for rows of the model's width. A thread
// keeps nothing between the two passes but its partial sum; the second reads x again, from L1 or L2.
// Order of the sum: thread i adds elements i, i + threads, ...; then the xor tree of the warp; then warps ascending.
// It is fixed by the size of the group alone. Bytes moved: rows * E * 4 * (2, with a residual 4).
// Defined by reference/norm.cpp; tested in tests/ops/test_dense.py.
#include "cuda/device_mat.h"
#include "cuda/kernels.h"

namespace fastllm::cuda {
namespace {

constexpr int64_t kMaxGroupOfOneWarp = 512;

struct RmsNormParams {
  DeviceMat x, residual, y;  // residual.data may be null
  const float* weight;
  const int32_t* row_ids;  // or null
  int64_t group;
  float weight_offset, eps;
};

template <int Warps>
struct RmsNormShared {
  float sums[Warps];
};

// registers: 64
template <int Warps>
__global__ void __launch_bounds__(Warps * 32) rms_norm_kernel(RmsNormParams p) {
  const int64_t row = blockIdx.x;
  const int64_t column = blockIdx.y * p.group;
  const int64_t source = p.row_ids != nullptr ? p.row_ids[row] : row;
  const float* x = p.x.row(source) + column;
  float* residual = p.residual.data != nullptr ? p.residual.row(source) + column : nullptr;
  float* y = p.y.row(row) + column;

  float sum = 0.0f;
  for (int64_t i = threadIdx.x; i < p.group; i += Warps * 32) {
    float value = x[i];
    if (residual != nullptr) value += residual[i];
    if (residual != nullptr && p.row_ids == nullptr) residual[i] = value;
    sum = fmaf(value, value, sum);
    y[i] = value;  // may be x itself: nobody reads x[i] again
  }
  for (int step = 16; step > 0; step /= 2) sum += fl::shfl_xor(fl::kFullMask, sum, step);
  if constexpr (Warps > 1) {
    auto& shared = *fl::smem<RmsNormShared<Warps>>();
    if (fl::lane_id() == 0) shared.sums[fl::warp_id()] = sum;
    fl::sync_threads();
    sum = 0.0f;
    for (int warp = 0; warp < Warps; ++warp) sum += shared.sums[warp];
  }
  const float scale = 1.0f / sqrtf(sum / static_cast<float>(p.group) + p.eps);
  for (int64_t i = threadIdx.x; i < p.group; i += Warps * 32) y[i] = y[i] * scale * (p.weight[i] + p.weight_offset);
}

template <int Warps>
void launch_rms_norm(fl::Stream& stream, const RmsNormArgs& args, const RmsNormParams& p) {
  const fl::Dim3 grid{narrow<uint32_t>(args.y.rows), narrow<uint32_t>(args.y.cols / args.group), 1};
  fl::launch(stream, {"rms_norm", grid, Warps * 32, sizeof(RmsNormShared<Warps>)}, rms_norm_kernel<Warps>, p);
}

}  // namespace

void rms_norm(fl::Stream& stream, const RmsNormArgs& args) {
  const RmsNormParams p{device_mat(args.x), device_mat(args.residual),
                        device_mat(args.y), args.weight,
                        args.row_ids,       args.group,
                        args.weight_offset, args.eps};
  if (args.group <= kMaxGroupOfOneWarp) {
    launch_rms_norm<1>(stream, args, p);
  } else {
    launch_rms_norm<8>(stream, args, p);
  }
}

}  // namespace fastllm::cuda
