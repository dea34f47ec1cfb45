// The one pool of an engine. The caller is worker 0; `size() - 1` threads help it. Work is handed out as contiguous
// ranges (one memory stream per thread) whose rest is stolen when a worker finishes early. Who computes a unit never
// changes its value, so results do not depend on the number of threads.
//
// Thread contract: parallel_for is called by one thread at a time, and not from inside a body; a second call while one
// runs throws kInternal. In a forked child the pool works without its helpers. Between calls the helpers spin for
// `kHotMicroseconds`, then sleep on a futex: an idle pool uses no CPU.
#pragma once

#include <cstdint>
#include <memory>
#include <type_traits>

namespace fastllm {

class ThreadPool {
 public:
  // num_threads >= 1. Throws kDevice if a thread cannot be started.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  [[nodiscard]] int size() const;

  // Calls body(begin, end, thread_idx) on disjoint ranges that cover [0, num_units), each at most `grain` units long
  // and inside one multiple-of-grain chunk. Returns when all are done. The first exception is rethrown here.
  template <class Body>
  void parallel_for(int64_t num_units, int64_t grain, Body&& body) {
    using B = std::remove_reference_t<Body>;
    run(
        num_units, grain,
        [](void* context, int64_t begin, int64_t end, int thread_idx) {
          (*static_cast<B*>(context))(begin, end, thread_idx);
        },
        const_cast<void*>(static_cast<const void*>(&body)));
  }

 private:
  using Task = void (*)(void* context, int64_t begin, int64_t end, int thread_idx);
  void run(int64_t num_units, int64_t grain, Task task, void* context);

  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// min(affinity mask, cgroup cpu.max quota rounded down, physical cores), at least 1.
int default_num_threads();

}  // namespace fastllm
