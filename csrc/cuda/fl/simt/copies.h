#pragma once

#include <cstring>

#include "cuda/fl/simt/site.h"
#include "cuda/fl/types.h"

namespace fl {
namespace simt {

inline void do_copy(const PendingCopy& copy) {
  std::memcpy(copy.to, copy.from, static_cast<std::size_t>(copy.source_bytes));
  std::memset(static_cast<std::byte*>(copy.to) + copy.source_bytes, 0,
              static_cast<std::size_t>(copy.bytes - copy.source_bytes));
}

}  // namespace simt

template <int Bytes>
void cp_async(uint32_t shared, const void* global, int source_bytes = Bytes, simt::Site site = simt::here()) {
  static_assert(Bytes == 4 || Bytes == 8 || Bytes == 16);
  void* to = simt::shared_pointer(shared, Bytes, site);
  simt::Lane& lane = *simt::current;
  lane.what = "cp_async";
  lane.site = site;
  if (source_bytes < 0 || source_bytes > Bytes) simt::fail_kernel("cp_async: source_bytes is outside [0, Bytes]");
  if (reinterpret_cast<uintptr_t>(global) % Bytes != 0) simt::fail_kernel("cp_async: the source is not aligned");
  const simt::PendingCopy copy{to, global, Bytes, source_bytes, lane.group};
  if (simt::options().async_copies == simt::AsyncCopies::kAtIssue) {
    simt::do_copy(copy);
  } else {
    lane.copies.push_back(copy);
  }
}
inline void cp_async_commit() { ++simt::current->group; }
template <int Newest>
void cp_async_wait() {
  simt::Lane& lane = *simt::current;
  std::size_t done = 0;
  while (done < lane.copies.size() && lane.copies[done].group + Newest < lane.group) {
    simt::do_copy(lane.copies[done++]);
  }
  lane.copies.erase(lane.copies.begin(), lane.copies.begin() + static_cast<std::ptrdiff_t>(done));
}

}  // namespace fl
