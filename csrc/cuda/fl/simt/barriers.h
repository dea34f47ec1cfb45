#pragma once

#include "cuda/fl/simt/warp.h"

namespace fl {

inline void sync_threads(simt::Site site = simt::here()) {
  simt::arrive_barrier("sync_threads", 0, 0, false, true, site);
}
inline bool sync_threads_or(bool predicate, simt::Site site = simt::here()) {
  return simt::arrive_barrier("sync_threads_or", 0, 0, predicate, true, site) != 0;
}
inline bool sync_threads_and(bool predicate, simt::Site site = simt::here()) {
  return simt::arrive_barrier("sync_threads_and", 0, 0, !predicate, true, site) == 0;
}
inline int sync_threads_count(bool predicate, simt::Site site = simt::here()) {
  return simt::arrive_barrier("sync_threads_count", 0, 0, predicate, true, site);
}

inline void bar_sync(int id, int num_threads, simt::Site site = simt::here()) {
  simt::arrive_barrier("bar_sync", id, num_threads, false, true, site);
}
inline void bar_arrive(int id, int num_threads, simt::Site site = simt::here()) {
  simt::arrive_barrier("bar_arrive", id, num_threads, false, false, site);
}

inline void sync_warp(uint32_t mask = kFullMask, simt::Site site = simt::here()) {
  simt::reduce("sync_warp", mask, false, site, false, [](bool, bool, uint32_t) { return false; });
}

}  // namespace fl
