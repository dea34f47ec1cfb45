// The arithmetic of one query row, the same for every kernel of this folder.
//
// Positions are cut at absolute multiples into units of kUnitTokens, these into tiles of kTileTokens. Scores are in
// units of log2: x_j = q . k_j * scale * log2(e), the factor being multiplied into q before it is rounded.
//
//   within a unit, tile by tile:   m' = max(m, max x_j),  p_j = 2^(x_j - m'),  f = 2^(m - m')
//                                  l = l f + sum p_j,     O = O f + sum p_j v_j         (O by MMAs of 16 tokens)
//   between units, ascending:      M' = max(M, m),        (L, O) = (L, O) 2^(M - M') + (l, o) 2^(m - M')
//   at the end:                    out = O / (L + 2^(sink - M))
//
// What a row does not see has weight 0 and changes no bit of m, l or O; so kernels may walk over more tiles than a row
// sees. A row's bits depend on its own positions alone: whether it came as one of a hundred new tokens or as the only
// one, whether one warp did all units or many did one each. That holds because there is no other way through this file:
// decode, prefill and merge call the same functions, with the same shape of MMA. (Compile with -fmad=false: an FMA that
// the compiler finds in one kernel and not in the other would break it.)
//
// KV tokens lie on M of the MMAs, query rows ("columns") on N: S^T = K Q^T, O^T = V^T P^T. Eight columns are enough, so
// a single query head wastes little; P^T gets from the layout of the accumulator to that of an operand by movmatrix.
// One warp has 8 NT columns; lane l with g = l / 4, t = l % 4 holds columns 8 nt + 2t and 8 nt + 2t + 1, and of these
// the tokens g and g + 8 of each slot, the dims that Format::out_dim names.
//
// Codes (int8, e4m3): K has scales for groups of dims, each group's dot product is multiplied by its own. The scale of
// V goes into the weight, y_j = p_j s_j, which is rounded to half: O carries a power of two per column, raised when a y
// asks for it.
//
// FlashAttention-2 (arXiv 2307.08691) has the running maximum; the orientation is that of TurboMind (arXiv 2508.15601).
#pragma once

#include <cmath>

#include "cuda/attention/kv_slot.h"

namespace fastllm::cuda {

constexpr int kTileTokens = 64;
constexpr int kTileSlots = kTileTokens / kSlotTokens;
// Long enough that a unit's partial result (D + 2 floats a row) is 3 % of the bytes of K and V at four heads per kv
// head in bf16; short enough that a sequence of 8192 alone gives 32 units per kv head to the 132 SMs of an H100.
constexpr int kUnitTokens = 256;

constexpr float kLog2E = 1.4426950408889634f;

// The positions [low, high] that a lane's two columns of each block of eight see.
template <int NT>
struct Visible {
  int32_t low[NT][2];
  int32_t high[NT][2];
  __device__ bool sees(int nt, int c, int32_t j) const { return j >= low[nt][c] && j <= high[nt][c]; }
};

template <int NT>
using Scores = float[kTileSlots][NT][4];  // [slot][block of columns][token g: two columns, token g + 8: two columns]

using VScales = fl::Vec<fl::bf16, 2>;  // of tokens g and g + 8 of a slot

// cap tanh(x): q was multiplied by scale / cap, `cap` by log2(e). What counts is the absolute error of tanh, 2^-22.
template <int NT>
__device__ inline void cap_scores(Scores<NT>& scores, float cap) {
#pragma unroll
  for (int slot = 0; slot < kTileSlots; ++slot) {
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& x = scores[slot][nt][i];
        x = cap * (1.0f - 2.0f * fl::rcp(fl::ex2(2.0f * kLog2E * x) + 1.0f));
      }
    }
  }
}
// What is not seen gets -infinity. The tile begins at position j0.
template <int NT>
__device__ inline void hide_scores(Scores<NT>& scores, const Visible<NT>& visible, int32_t j0) {
  const int32_t token = j0 + static_cast<int32_t>(fl::lane_id()) / 4;
#pragma unroll
  for (int slot = 0; slot < kTileSlots; ++slot) {
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (!visible.sees(nt, i % 2, token + kSlotTokens * slot + 8 * (i / 2))) scores[slot][nt][i] = -INFINITY;
      }
    }
  }
}

// Score of one slot before softcap and mask.
template <class Format, int D, int NT>
__device__ inline void score_slot(float (&scores)[NT][4], const uint32_t (&q)[D / 16][NT][2], uint32_t slot,
                                  const std::byte* slot_bytes) {
  using S = Slot<Format, D>;
  constexpr int kPitch = S::kPitch;
#pragma unroll
  for (int nt = 0; nt < NT; ++nt) {
#pragma unroll
    for (int i = 0; i < 4; ++i) scores[nt][i] = 0.0f;
  }
  if constexpr (!Format::kHasScales) {
#pragma unroll
    for (int step = 0; step < D / 16; ++step) {
      uint32_t a[1][4];
      Format::template k_fragments<1>(a, slot, kPitch, 16 * step);
#pragma unroll
      for (int nt = 0; nt < NT; ++nt) Format::mma(scores[nt], a[0], q[step][nt]);
    }
  } else {
    const int g = static_cast<int>(fl::lane_id()) / 4;
    const auto* scales = reinterpret_cast<const fl::bf16*>(slot_bytes + S::kKScales);
    const auto do_group = [&]<int Steps>(int group, std::integral_constant<int, Steps>) {
      uint32_t a[Steps][4];
      Format::template k_fragments<Steps>(a, slot, kPitch, 32 * group);
      const float scale[2] = {fl::to_float(scales[g * S::kScaleGroups + group]),
                              fl::to_float(scales[(g + 8) * S::kScaleGroups + group])};
#pragma unroll
      for (int nt = 0; nt < NT; ++nt) {
        float part[4] = {0.0f, 0.0f, 0.0f, 0.0f};
#pragma unroll
        for (int s = 0; s < Steps; ++s) Format::mma(part, a[s], q[2 * group + s][nt]);
#pragma unroll
        for (int i = 0; i < 4; ++i) scores[nt][i] = fmaf(part[i], scale[i / 2], scores[nt][i]);
      }
    };
#pragma unroll
    for (int group = 0; group < D / 32; ++group) do_group(group, std::integral_constant<int, 2>{});
    if constexpr (D % 32 != 0) do_group(D / 32, std::integral_constant<int, 1>{});
  }
}

// 2^e as float, 0 below 2^-126. e <= 127.
__device__ inline float power_of_two(int e) {
  return e < -126 ? 0.0f : fl::bit_cast<float>(static_cast<uint32_t>(e + 127) << 23);
}

// How a unit (m, l, o) joins the running result (M, L, O) of the units before it.
struct Fold {
  float m;
  float old_weight, new_weight;

  __device__ Fold(float old_m, float new_m) : m(fmaxf(old_m, new_m)) {
    const float base = m == -INFINITY ? 0.0f : m;
    old_weight = fl::ex2(old_m - base);
    new_weight = fl::ex2(new_m - base);
  }
  __device__ float operator()(float old_value, float new_value) const {
    return fmaf(new_value, new_weight, old_value * old_weight);
  }
};

// The running result of a unit for the columns of a warp.
template <class Format, int D, int NT>
struct Unit {
  float o[D / 16][NT][4];  // [block of dims][block of columns][dim row g: two columns, dim row g + 8: two columns]
  float m[NT][2];
  float l[NT][2];                             // of this lane's tokens alone until finish()
  int32_t e[Format::kHasScales ? NT : 1][2];  // o is in units of 2^e

  // Halves of y below 2^-14 lose bits: so y goes up to 2^15, and its sums stay far from the end of float.
  static constexpr int kTopExponent = 14;
  static constexpr int kLowestExponent = -112;

  // A result of nothing.
  __device__ static void clear(float (&to_o)[D / 16][NT][4], float (&to_m)[NT][2], float (&to_l)[NT][2]) {
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
#pragma unroll
      for (int d = 0; d < D / 16; ++d) {
#pragma unroll
        for (int i = 0; i < 4; ++i) to_o[d][nt][i] = 0.0f;
      }
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        to_m[nt][c] = -INFINITY;
        to_l[nt][c] = 0.0f;
      }
    }
  }
  __device__ void reset() {
    clear(o, m, l);
    if constexpr (Format::kHasScales) {
#pragma unroll
      for (int nt = 0; nt < NT; ++nt) e[nt][0] = e[nt][1] = kLowestExponent;
    }
  }

  // The scales of V of this lane's two tokens of a slot, from the slot of K. Codes only.
  __device__ static VScales load_v_scales(const std::byte* slot_bytes) {
    if constexpr (Format::kHasScales) {
      const auto* scales = reinterpret_cast<const fl::bf16*>(slot_bytes + Slot<Format, D>::kVScales);
      const uint32_t g = fl::lane_id() / 4;
      return {{scales[g], scales[g + 8]}};
    }
    return {};
  }

  // Scores of a tile become weights of V; m, l and o move to the new maximum.
  __device__ void softmax(Scores<NT>& scores, const VScales (&v_scales)[kTileSlots]) {
    bool rescales = false;
    float factor[NT][2];
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        float top = -INFINITY;
#pragma unroll
        for (int slot = 0; slot < kTileSlots; ++slot) {
#pragma unroll
          for (int r = 0; r < 2; ++r) top = fmaxf(top, scores[slot][nt][2 * r + c]);
        }
        top = fmaxf(m[nt][c], over_tokens(top));
        const float base = top == -INFINITY ? 0.0f : top;
        factor[nt][c] = fl::ex2(m[nt][c] - base);
        m[nt][c] = top;
        l[nt][c] *= factor[nt][c];
#pragma unroll
        for (int slot = 0; slot < kTileSlots; ++slot) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            float& x = scores[slot][nt][2 * r + c];
            x = fl::ex2(x - base);
            l[nt][c] += x;
          }
        }
        if constexpr (Format::kHasScales) factor[nt][c] *= scale_weights(scores, nt, c, v_scales);
        rescales = rescales || factor[nt][c] != 1.0f;
      }
    }
    // Times 1 changes no bit: what one warp skips and another does is the same.
    if (!fl::any(fl::kFullMask, rescales)) return;
#pragma unroll
    for (int d = 0; d < D / 16; ++d) {
#pragma unroll
      for (int nt = 0; nt < NT; ++nt) {
#pragma unroll
        for (int i = 0; i < 4; ++i) o[d][nt][i] *= factor[nt][i % 2];
      }
    }
  }

  // o += V^T P^T for the slot whose tokens begin at position j0. `hides`: some of `rows` do not see some token. Then a
  // number of V that is not finite must not reach them, although their weight is 0.
  template <class Rows>
  __device__ void add_slot(const float (&weights)[NT][4], uint32_t slot, const std::byte* slot_bytes, bool hides,
                           const Rows& rows, int32_t j0) {
    uint32_t b[NT][2];
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        b[nt][r] = fl::movmatrix_trans(Format::pack(weights[nt][2 * r], weights[nt][2 * r + 1]));
      }
    }
    if constexpr (Format::kHasScales) {
      add_blocks<Format::template kVBlocks<D>, 0>(b, slot);  // codes are finite; the scales are in the weights
    } else {
      if (hides && !is_finite(slot)) {
        add_with_infinities(weights, b, slot, slot_bytes, rows.visible(), j0);
      } else {
        add_blocks<1, 0>(b, slot);
      }
    }
  }

  // Sums l over the lanes and takes the power of two out of o.
  __device__ void finish() {
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
#pragma unroll
        for (int step = 4; step <= 16; step *= 2) l[nt][c] += fl::shfl_xor(fl::kFullMask, l[nt][c], step);
        if constexpr (Format::kHasScales) {
          const float scale = power_of_two(e[nt][c]);
#pragma unroll
          for (int d = 0; d < D / 16; ++d) {
            o[d][nt][c] *= scale;
            o[d][nt][c + 2] *= scale;
          }
        }
      }
    }
  }

  // After finish(): (to_o, to_m, to_l) = what they were, then this unit.
  __device__ void fold_into(float (&to_o)[D / 16][NT][4], float (&to_m)[NT][2], float (&to_l)[NT][2]) const {
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const Fold fold(to_m[nt][c], m[nt][c]);
        to_m[nt][c] = fold.m;
        to_l[nt][c] = fold(to_l[nt][c], l[nt][c]);
#pragma unroll
        for (int d = 0; d < D / 16; ++d) {
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            float& x = to_o[d][nt][2 * r + c];
            x = fold(x, o[d][nt][2 * r + c]);
          }
        }
      }
    }
  }

 private:
  __device__ static float over_tokens(float x) {
#pragma unroll
    for (int step = 4; step <= 16; step *= 2) x = fmaxf(x, fl::shfl_xor(fl::kFullMask, x, step));
    return x;
  }

  // Weights times scales of V, in units of 2^e with the new e; returns what o must be multiplied by.
  __device__ float scale_weights(Scores<NT>& scores, int nt, int c, const VScales (&v_scales)[kTileSlots]) {
    float top = 0.0f;
#pragma unroll
    for (int slot = 0; slot < kTileSlots; ++slot) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        float& y = scores[slot][nt][2 * r + c];
        if (y != 0.0f) y *= fl::to_float(v_scales[slot][r]);  // the scale of a token that is not seen may be NaN
        top = fmaxf(top, y);
      }
    }
    top = over_tokens(top);
    const int exponent = static_cast<int>(fl::bit_cast<uint32_t>(top) >> 23) - 127 - kTopExponent;
    const int old = e[nt][c];
    e[nt][c] = exponent > old ? exponent : old;
    const float unit = power_of_two(-e[nt][c]);
#pragma unroll
    for (int slot = 0; slot < kTileSlots; ++slot) {
#pragma unroll
      for (int r = 0; r < 2; ++r) scores[slot][nt][2 * r + c] *= unit;
    }
    return power_of_two(old - e[nt][c]);
  }

  // Blocks of dims from `First` on, `Steps` at a time.
  template <int Steps, int First>
  __device__ void add_blocks(const uint32_t (&b)[NT][2], uint32_t slot) {
    if constexpr (First < D / 16) {
      constexpr int kSteps = First + Steps <= D / 16 ? Steps : 1;
      uint32_t a[kSteps][4];
      Format::template v_fragments<kSteps>(a, slot, Slot<Format, D>::kPitch, 16 * First);
#pragma unroll
      for (int s = 0; s < kSteps; ++s) {
#pragma unroll
        for (int nt = 0; nt < NT; ++nt) Format::mma(o[First + s][nt], a[s], b[nt]);
      }
      add_blocks<Steps, First + kSteps>(b, slot);
    }
  }

  // All exponent bits set: infinity or NaN.
  static constexpr uint32_t kExponent = Format::kIsF16 ? 0x7c00u : 0x7f80u;
  __device__ static bool is_half_finite(uint32_t bits) { return (bits & kExponent) != kExponent; }

  __device__ static bool is_finite(uint32_t slot) {
    bool good = true;
#pragma unroll 1
    for (int d = 0; d < D / 16; ++d) {
      uint32_t a[1][4];
      Format::template v_fragments<1>(a, slot, Slot<Format, D>::kPitch, 16 * d);
#pragma unroll
      for (int i = 0; i < 4; ++i) good = good && is_half_finite(a[0][i]) && is_half_finite(a[0][i] >> 16);
    }
    return fl::all(fl::kFullMask, good);
  }

  // The finite numbers of V by MMA, the others one by one for the columns that see them. Slow, and rare.
  __device__ void add_with_infinities(const float (&weights)[NT][4], const uint32_t (&b)[NT][2], uint32_t slot,
                                      const std::byte* slot_bytes, const Visible<NT>& visible, int32_t j0) {
    using Element = typename Format::Element;
    const int lane = static_cast<int>(fl::lane_id());
#pragma unroll
    for (int d = 0; d < D / 16; ++d) {
      uint32_t a[1][4];
      Format::template v_fragments<1>(a, slot, Slot<Format, D>::kPitch, 16 * d);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (!is_half_finite(a[0][i])) a[0][i] &= 0xffff0000u;
        if (!is_half_finite(a[0][i] >> 16)) a[0][i] &= 0xffffu;
      }
#pragma unroll
      for (int nt = 0; nt < NT; ++nt) Format::mma(o[d][nt], a[0], b[nt]);
    }
#pragma unroll
    for (int nt = 0; nt < NT; ++nt) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll 1
          for (int token = 0; token < 8; ++token) {
            const float p = fl::shfl(fl::kFullMask, weights[nt][2 * half + c], 4 * token + lane % 4);
            const int row = token + 8 * half;
            if (!visible.sees(nt, c, j0 + row)) continue;
            const auto* v = reinterpret_cast<const Element*>(slot_bytes + row * Slot<Format, D>::kPitch);
#pragma unroll
            for (int i = 0; i < D / 8; ++i) {
              const Element x = v[16 * (i / 2) + Format::out_dim(lane / 4, i % 2)];
              if (!is_half_finite(x.bits)) o[i / 2][nt][2 * (i % 2) + c] += p * fl::to_float(x);
            }
          }
        }
      }
    }
    fl::sync_warp();  // what follows wants the lanes together again
  }
};

// What O is multiplied by at the end. sink: in log2, or -infinity.
__device__ inline float normalizer(float m, float l, float sink) {
  const float sum = l + (sink == -INFINITY ? 0.0f : fl::ex2(sink - m));
  return sum == 0.0f ? 0.0f : 1.0f / sum;
}

}  // namespace fastllm::cuda
