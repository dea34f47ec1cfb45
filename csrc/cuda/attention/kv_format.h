// How K and V of each cache type become operands of the tensor cores.
//
// A format gives, for a slot (16 tokens of K or V of one head in shared memory, rows `pitch` bytes apart):
//   k_fragments   two k-steps (32 dims) of A = K: rows tokens, columns dims
//   v_fragments   two blocks of 16 dims of A = V^T: rows dims, columns tokens
// and packs floats into the type that it multiplies in. Lane l has g = l / 4, t = l % 4 (fl/ptx/matrix.h).
//
// 16-bit types are what ldmatrix is made for. Codes (int8, e4m3) go through it as pairs of bytes, so a lane gets four
// neighbouring dims of K (or two dims of two tokens of V) in a register: they take the places of the four k (or of rows
// g and g + 8) of the fragment, and Q is loaded (O is stored) in the same order. No shuffles. Both become halves
// exactly:
//   int8   by putting 0x64 above the byte: 1024 + (x + 128), less 1152; one packed subtraction for two numbers.
//   e4m3   by the conversion of sm_89 and later; before, by shifting its exponent and mantissa to the place of a half's
//          and multiplying by what the bias differs. Stored codes are never NaN: what is not finite has a NaN scale.
#pragma once

#include "cuda/fl/gpu.h"

namespace fastllm::cuda {

// The largest finite half: q is clamped to it where it is multiplied as half, so that it cannot overflow.
constexpr float kLargestF16 = 65504.0f;

template <class T>
struct KvHalf {  // T: fl::bf16 or fl::f16
  using Element = T;
  static constexpr bool kHasScales = false;
  static constexpr bool kIsF16 = std::is_same_v<T, fl::f16>;

  // Dims of the pairs that lane t brings to (register 0, register 1) of B = Q^T, within a k-step of 16.
  __device__ static int q_dim(int t, int i) { return 2 * t + 8 * i; }
  // Dim of accumulator row g + 8 r within a block of 16.
  __device__ static int out_dim(int g, int r) { return g + 8 * r; }

  template <int Steps>  // 1 or 2 k-steps of 16 dims
  __device__ static void k_fragments(uint32_t (&a)[Steps][4], uint32_t slot, int pitch, int dim) {
    const int lane = static_cast<int>(fl::lane_id());
    const int row = lane % 16;  // matrices 0, 1: tokens 0-7 and 8-15; 2, 3: the same tokens, 8 dims on
#pragma unroll
    for (int s = 0; s < Steps; ++s) {
      fl::ldmatrix<4>(a[s], slot + static_cast<uint32_t>(row * pitch + 2 * (dim + 16 * s) + lane / 16 * 16));
    }
  }
  template <int Steps>
  __device__ static void v_fragments(uint32_t (&a)[Steps][4], uint32_t slot, int pitch, int dim) {
    const int lane = static_cast<int>(fl::lane_id());
    const int row = lane % 8 + lane / 16 * 8;  // matrices 0, 1: tokens 0-7, dims 0-7 and 8-15; 2, 3: tokens 8-15
#pragma unroll
    for (int s = 0; s < Steps; ++s) {
      fl::ldmatrix_trans<4>(a[s], slot + static_cast<uint32_t>(row * pitch + 2 * (dim + 16 * s) + lane / 8 % 2 * 16));
    }
  }
  __device__ static uint32_t pack(float low, float high) {
    if constexpr (kIsF16) {
      return fl::pack_f16x2(low, high);
    } else {
      return fl::pack_bf16x2(low, high);
    }
  }
  __device__ static void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    if constexpr (kIsF16) {
      fl::mma_f16(d, a, b);
    } else {
      fl::mma_bf16(d, a, b);
    }
  }
};

template <class T>
struct KvCodes {  // T: int8_t or fl::e4m3
  using Element = T;
  static constexpr bool kHasScales = true;
  static constexpr bool kIsF16 = true;
  // Blocks of 16 dims of V that are converted at once. Two of e4m3 do not fit beside the accumulators of D = 256.
  template <int D>
  static constexpr int kVBlocks = std::is_same_v<T, int8_t> || D <= 128 ? 2 : 1;

  __device__ static int q_dim(int t, int i) { return 4 * t + 2 * i; }
  __device__ static int out_dim(int g, int r) { return 2 * g + r; }

  // Bytes I and J of x, as halves.
  template <int I, int J>
  __device__ static uint32_t halves(uint32_t x) {
    if constexpr (std::is_same_v<T, int8_t>) {
      return fl::sub_f16x2(fl::prmt(x ^ 0x80808080u, 0x64646464u, 0x4040u | I | J << 8), 0x64806480u);
    } else {
      return fl::f16x2_from_e4m3_bytes<I, J>(x);
    }
  }

  template <int Steps>
  __device__ static void k_fragments(uint32_t (&a)[Steps][4], uint32_t slot, int pitch, int dim) {
    uint32_t x[2 * Steps];  // [step][tokens 0-7, 8-15]: dims 4t .. 4t+3 of token g
    fl::ldmatrix<2 * Steps>(x, row_address<Steps>(slot, pitch, dim));
#pragma unroll
    for (int s = 0; s < Steps; ++s) {
      a[s][0] = halves<0, 1>(x[2 * s]);
      a[s][1] = halves<0, 1>(x[2 * s + 1]);
      a[s][2] = halves<2, 3>(x[2 * s]);
      a[s][3] = halves<2, 3>(x[2 * s + 1]);
    }
  }
  template <int Steps>
  __device__ static void v_fragments(uint32_t (&a)[Steps][4], uint32_t slot, int pitch, int dim) {
    uint32_t x[2 * Steps];  // [step][tokens 0-7, 8-15]: dims 2g, 2g+1 of token 2t, then of token 2t+1
    fl::ldmatrix_trans<2 * Steps>(x, row_address<Steps>(slot, pitch, dim));
#pragma unroll
    for (int s = 0; s < Steps; ++s) {
      a[s][0] = halves<0, 2>(x[2 * s]);
      a[s][1] = halves<1, 3>(x[2 * s]);
      a[s][2] = halves<0, 2>(x[2 * s + 1]);
      a[s][3] = halves<1, 3>(x[2 * s + 1]);
    }
  }
  __device__ static uint32_t pack(float low, float high) { return fl::pack_f16x2(low, high); }
  __device__ static void mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) { fl::mma_f16(d, a, b); }

 private:
  template <int Steps>  // matrices 0, 1: tokens 0-7 and 8-15; 2, 3: the same tokens, 16 dims on
  __device__ static uint32_t row_address(uint32_t slot, int pitch, int dim) {
    const int lane = static_cast<int>(fl::lane_id());
    return slot + static_cast<uint32_t>(lane % 16 * pitch + dim + (Steps == 2 ? lane / 16 * 16 : 0));
  }
};

}  // namespace fastllm::cuda
