#pragma once

#include <algorithm>
#include <array>
#include <bit>

#include "cuda/fl/simt/site.h"
#include "cuda/fl/types.h"

namespace fl {
namespace simt {

// The lanes of `mask` meet; the last one runs combine(in, out) for all, with pointers that are null outside the mask.
template <class In, class Out, class Combine>
Out warp_collective(const char* what, uint32_t mask, const In& in, Site site, Combine combine,
                    From from = From::kAnywhere) {
  Out out{};
  if (!arrive_warp(what, mask, &in, &out, site, from)) return out;
  std::array<const In*, 32> ins{};
  std::array<Out*, 32> outs{};
  for (uint32_t lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1u) == 0) continue;
    ins[lane] = static_cast<const In*>(peer(lane).in);
    outs[lane] = static_cast<Out*>(peer(lane).out);
  }
  combine(ins, outs);
  release_warp(mask);
  return out;
}

struct Shuffle {
  uint64_t value;
  int source;  // lane of the warp; the own lane when the wanted one is outside the group
};

inline uint64_t shuffle(const char* what, uint32_t mask, uint64_t value, int source, Site site) {
  return warp_collective<Shuffle, uint64_t>(what, mask, {value, source}, site, [](const auto& in, const auto& out) {
    for (std::size_t lane = 0; lane < 32; ++lane) {
      if (in[lane] == nullptr) continue;
      const Shuffle* from = in[static_cast<std::size_t>(in[lane]->source)];
      *out[lane] = (from != nullptr ? from : in[lane])->value;
    }
  });
}

template <class T>
uint64_t widen(T x) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8);
  if constexpr (sizeof(T) == 8) {
    return fl::bit_cast<uint64_t>(x);
  } else {
    return fl::bit_cast<uint32_t>(x);
  }
}
template <class T>
T unwiden(uint64_t x) {
  if constexpr (sizeof(T) == 8) {
    return fl::bit_cast<T>(x);
  } else {
    return fl::bit_cast<T>(static_cast<uint32_t>(x));
  }
}

template <class In, class Out, class F>
Out reduce(const char* what, uint32_t mask, In x, Site site, Out start, F f) {
  return warp_collective<In, Out>(what, mask, x, site, [&](const auto& in, const auto& out) {
    Out result = start;
    for (const In* i : in) {
      if (i != nullptr) result = f(result, *i);
    }
    for (Out* o : out) {
      if (o != nullptr) *o = result;
    }
  });
}

}  // namespace simt

inline uint32_t lane_id() { return simt::current->lane; }
inline uint32_t warp_id() { return simt::current->warp(); }

template <class T>
T shfl(uint32_t mask, T x, int source, int width = 32, simt::Site site = simt::here()) {
  const int own = static_cast<int>(lane_id());
  const int from = (own & ~(width - 1)) + (source & (width - 1));
  return simt::unwiden<T>(simt::shuffle("shfl", mask, simt::widen(x), from, site));
}
template <class T>
T shfl_up(uint32_t mask, T x, uint32_t delta, int width = 32, simt::Site site = simt::here()) {
  const int own = static_cast<int>(lane_id());
  const int from = own - static_cast<int>(delta);
  return simt::unwiden<T>(
      simt::shuffle("shfl_up", mask, simt::widen(x), from < (own & ~(width - 1)) ? own : from, site));
}
template <class T>
T shfl_xor(uint32_t mask, T x, int lane_mask, int width = 32, simt::Site site = simt::here()) {
  const int own = static_cast<int>(lane_id());
  const int from = own ^ lane_mask;
  return simt::unwiden<T>(
      simt::shuffle("shfl_xor", mask, simt::widen(x), from > (own | (width - 1)) ? own : from, site));
}

inline bool any(uint32_t mask, bool predicate, simt::Site site = simt::here()) {
  return simt::reduce("any", mask, predicate, site, false, [](bool all, bool x) { return all || x; });
}
inline bool all(uint32_t mask, bool predicate, simt::Site site = simt::here()) {
  return simt::reduce("all", mask, predicate, site, true, [](bool all, bool x) { return all && x; });
}
inline uint32_t match_any(uint32_t mask, uint32_t x, simt::Site site = simt::here()) {
  return simt::warp_collective<uint32_t, uint32_t>("match_any", mask, x, site, [](const auto& in, const auto& out) {
    for (std::size_t i = 0; i < 32; ++i) {
      if (in[i] == nullptr) continue;
      for (std::size_t j = 0; j < 32; ++j) {
        if (in[j] != nullptr && *in[i] == *in[j]) *out[i] |= 1u << j;
      }
    }
  });
}

template <class T>
T reduce_add(uint32_t mask, T x, simt::Site site = simt::here()) {
  static_assert(std::is_same_v<T, uint32_t> || std::is_same_v<T, int32_t>);
  return static_cast<T>(simt::reduce("reduce_add", mask, static_cast<uint32_t>(x), site, 0u,
                                     [](uint32_t sum, uint32_t y) { return sum + y; }));
}

}  // namespace fl
