#pragma once

#include <array>
#include <cstring>

#include "cuda/fl/simt/numbers.h"
#include "cuda/fl/simt/warp.h"

namespace fl {
namespace simt {

template <int Num, bool Trans>
void load_matrices(uint32_t (&d)[Num], uint32_t row_address, Site site) {
  static_assert(Num == 1 || Num == 2 || Num == 4);
  using Registers = std::array<uint32_t, Num>;
  // Lanes beyond the rows of the matrices bring addresses that are not used.
  const void* row = lane_id() < 8 * Num ? shared_pointer(row_address, 16, site) : nullptr;
  const Registers out = warp_collective<const void*, Registers>(
      Trans ? "ldmatrix_trans" : "ldmatrix", kFullMask, row, site,
      [](const auto& rows, const auto& outs) {
        const auto element = [&](std::size_t matrix, std::size_t r, std::size_t c) {
          uint16_t x = 0;
          std::memcpy(&x, static_cast<const std::byte*>(*rows[8 * matrix + r]) + 2 * c, 2);
          return x;
        };
        for (std::size_t lane = 0; lane < 32; ++lane) {
          const std::size_t g = lane / 4;
          const std::size_t t = lane % 4;
          for (std::size_t m = 0; m < Num; ++m) {
            (*outs[lane])[m] = Trans ? pair(element(m, 2 * t, g), element(m, 2 * t + 1, g))
                                     : pair(element(m, g, 2 * t), element(m, g, 2 * t + 1));
          }
        }
      },
      From::kOnePlace);
  for (std::size_t m = 0; m < Num; ++m) d[m] = out[m];
}

template <class C>
struct MmaIn {
  std::array<uint32_t, 4> a;
  std::array<uint32_t, 2> b;
  std::array<C, 4> c;
};

// K: columns of A. unpack_a(word, values): the elements of one register, ascending k.
template <int K, class C, class Sum, class UnpackA, class UnpackB>
void mma(const char* what, C (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], Site site, UnpackA unpack_a,
         UnpackB unpack_b) {
  constexpr std::size_t kPer = K / 8;  // elements of a register
  using Element = decltype(unpack_a(0u, std::size_t{0}));
  const MmaIn<C> in{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}, {d[0], d[1], d[2], d[3]}};
  const auto out = warp_collective<MmaIn<C>, std::array<C, 4>>(
      what, kFullMask, in, site,
      [&](const auto& ins, const auto& outs) {
        Element am[16][K];
        Element bm[8][K];
        for (std::size_t lane = 0; lane < 32; ++lane) {
          const std::size_t g = lane / 4;
          const std::size_t k = lane % 4 * kPer;
          for (std::size_t i = 0; i < kPer; ++i) {
            am[g][k + i] = unpack_a(ins[lane]->a[0], i);
            am[g + 8][k + i] = unpack_a(ins[lane]->a[1], i);
            am[g][K / 2 + k + i] = unpack_a(ins[lane]->a[2], i);
            am[g + 8][K / 2 + k + i] = unpack_a(ins[lane]->a[3], i);
            bm[g][k + i] = unpack_b(ins[lane]->b[0], i);
            bm[g][K / 2 + k + i] = unpack_b(ins[lane]->b[1], i);
          }
        }
        for (std::size_t lane = 0; lane < 32; ++lane) {
          for (std::size_t i = 0; i < 4; ++i) {
            const std::size_t row = lane / 4 + 8 * (i / 2);
            const std::size_t column = 2 * (lane % 4) + i % 2;
            auto sum = static_cast<Sum>(ins[lane]->c[i]);
            for (std::size_t k = 0; k < K; ++k) {
              sum += static_cast<Sum>(am[row][k]) * static_cast<Sum>(bm[column][k]);
            }
            (*outs[lane])[i] = static_cast<C>(sum);
          }
        }
      },
      From::kOnePlace);
  for (std::size_t i = 0; i < 4; ++i) d[i] = out[i];
}

template <class T>
float half_value(uint32_t word, std::size_t i) {
  return to_float(T{half_of(word, static_cast<int>(i))});
}
inline float e4m3_value(uint32_t word, std::size_t i) { return to_float(e4m3{static_cast<uint8_t>(word >> (8 * i))}); }
template <class T>
int32_t byte_value(uint32_t word, std::size_t i) {
  return static_cast<T>(word >> (8 * i));
}

}  // namespace simt

template <int Num>
void ldmatrix(uint32_t (&d)[Num], uint32_t row_address, simt::Site site = simt::here()) {
  simt::load_matrices<Num, false>(d, row_address, site);
}
template <int Num>
void ldmatrix_trans(uint32_t (&d)[Num], uint32_t row_address, simt::Site site = simt::here()) {
  simt::load_matrices<Num, true>(d, row_address, site);
}
inline uint32_t movmatrix_trans(uint32_t x, simt::Site site = simt::here()) {
  return simt::warp_collective<uint32_t, uint32_t>(
      "movmatrix_trans", kFullMask, x, site,
      [](const auto& in, const auto& out) {
        const auto element = [&](std::size_t row, std::size_t column) {
          return simt::half_of(*in[4 * row + column / 2], static_cast<int>(column % 2));
        };
        for (std::size_t lane = 0; lane < 32; ++lane) {
          const std::size_t g = lane / 4;
          const std::size_t t = lane % 4;
          *out[lane] = simt::pair(element(2 * t, g), element(2 * t + 1, g));
        }
      },
      simt::From::kOnePlace);
}

// Sums in double, rounded to float once: the hardware's own order and truncation are not modelled.
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], simt::Site site = simt::here()) {
  simt::mma<16, float, double>("mma_bf16", d, a, b, site, simt::half_value<bf16>, simt::half_value<bf16>);
}
inline void mma_f16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], simt::Site site = simt::here()) {
  simt::mma<16, float, double>("mma_f16", d, a, b, site, simt::half_value<f16>, simt::half_value<f16>);
}
inline void mma_u8s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], simt::Site site = simt::here()) {
  simt::mma<32, int32_t, uint32_t>("mma_u8s8", d, a, b, site, simt::byte_value<uint8_t>, simt::byte_value<int8_t>);
}
inline void mma_e4m3(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], simt::Site site = simt::here()) {
  simt::mma<32, float, double>("mma_e4m3", d, a, b, site, simt::e4m3_value, simt::e4m3_value);
}

}  // namespace fl
