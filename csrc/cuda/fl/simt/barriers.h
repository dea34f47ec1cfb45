#pragma once

#include "cuda/fl/simt/warp.h"

namespace fl {

inline void sync_threads(simt::Site site = simt::here()) { simt::arrive_barrier("sync_threads", false, site); }
inline bool sync_threads_or(bool predicate, simt::Site site = simt::here()) {
  return simt::arrive_barrier("sync_threads_or", predicate, site);
}

inline void sync_warp(uint32_t mask = kFullMask, simt::Site site = simt::here()) {
  simt::reduce("sync_warp", mask, false, site, false, [](bool, bool) { return false; });
}

}  // namespace fl
