#pragma once

#include "cuda/fl/simt/site.h"
#include "cuda/fl/types.h"

namespace fl {
namespace simt {

template <class T>
void check_aligned(const T* p, std::size_t bytes, const char* what, Site site) {
  if (reinterpret_cast<uintptr_t>(p) % bytes == 0) return;
  current->what = what;
  current->site = site;
  fail_kernel(std::string(what) + ": the address is not aligned to " + std::to_string(bytes) + " bytes");
}

template <class T, class F>
T update(T* p, F f) {
  const T old = *p;
  *p = f(old);
  return old;
}

}  // namespace simt

template <class T>
T* smem(simt::Site site = simt::here()) {
  static_assert(alignof(T) <= 1024);
  if (sizeof(T) > simt::shared_bytes()) {
    simt::current->what = "smem";
    simt::current->site = site;
    simt::fail_kernel("smem: the struct has " + std::to_string(sizeof(T)) + " bytes, the launch gave " +
                      std::to_string(simt::shared_bytes()));
  }
  return reinterpret_cast<T*>(simt::shared_memory());
}
inline uint32_t smem_addr(const void* shared, simt::Site site = simt::here()) {
  return simt::shared_address(shared, site);
}

template <class T>
T load_nc(const T* global, simt::Site site = simt::here()) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8 || sizeof(T) == 16);
  simt::check_aligned(global, sizeof(T), "load_nc", site);
  return *global;
}
template <class T>
T load_stream(const T* global, simt::Site site = simt::here()) {
  static_assert(sizeof(T) == 16);
  simt::check_aligned(global, sizeof(T), "load_stream", site);
  return *global;
}

// One lane runs at a time: plain code is atomic.
inline int32_t atomic_add(int32_t* p, int32_t x) {
  return simt::update(
      p, [x](int32_t y) { return static_cast<int32_t>(static_cast<uint32_t>(y) + static_cast<uint32_t>(x)); });
}
inline uint32_t atomic_add(uint32_t* p, uint32_t x) {
  return simt::update(p, [x](uint32_t y) { return y + x; });
}
inline uint64_t atomic_add(uint64_t* p, uint64_t x) {
  return simt::update(p, [x](uint64_t y) { return y + x; });
}
inline uint64_t atomic_max(uint64_t* p, uint64_t x) {
  return simt::update(p, [x](uint64_t y) { return y > x ? y : x; });
}
inline uint32_t atomic_or(uint32_t* p, uint32_t x) {
  return simt::update(p, [x](uint32_t y) { return y | x; });
}

inline void fence_device() {}

}  // namespace fl
