// A job is a set of ranges and a gate. The caller fills the ranges, opens the gate, works, closes the gate and waits
// for the workers that are inside. A worker that wakes late finds the gate closed and goes back to sleep, so a sleeping
// or descheduled helper never delays a small job.
//
// gate_ = generation (32 bits) | open (1 bit) | workers inside (31 bits). All plain fields of the job are written
// before the gate opens (release) and read after a worker has entered (acquire); its leaving releases what it computed
// to the caller, who acquires it when the count is 0.
#include "core/thread_pool.h"

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <fstream>
#include <mutex>
#include <set>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "core/checked.h"
#include "core/error.h"
#include "core/fault.h"

namespace fastllm {
namespace {

// Longer than the gap between two operations of a step, shorter than anybody notices in `top`.
constexpr auto kHotMicroseconds = std::chrono::microseconds(200);
constexpr int kPausesPerLook = 64;  // about 2 us between two reads of the clock
constexpr std::size_t kCacheLine = 64;

constexpr uint64_t kOpen = uint64_t{1} << 31;
constexpr uint64_t kInsideMask = kOpen - 1;
constexpr uint64_t kGenerationStep = uint64_t{1} << 32;

constexpr uint64_t generation_of(uint64_t gate) { return gate >> 32; }

void pause_cpu() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Spins until is_done() or the time is over. Yields between looks: with more threads than cores, the one that is
// waited for may need this core.
template <class Predicate>
bool spin_until(std::chrono::microseconds limit, Predicate&& is_done) {
  const auto start = std::chrono::steady_clock::now();
  while (true) {
    for (int i = 0; i < kPausesPerLook; ++i) {
      if (is_done()) return true;
      pause_cpu();
    }
    if (std::chrono::steady_clock::now() - start > limit) return is_done();
    std::this_thread::yield();
  }
}

}  // namespace

struct ThreadPool::Impl {
  // Chunks [next, end) of one thread; others take from it when theirs are done. `next` may run past `end`.
  struct alignas(kCacheLine) Range {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  explicit Impl(int num_threads) : ranges(static_cast<std::size_t>(num_threads)) {}

  // Runs chunks until none is left, own range first, then the others' in a ring.
  void work(int thread_idx) {
    const int num_threads = static_cast<int>(ranges.size());
    for (int i = 0; i < num_threads; ++i) {
      Range& range = ranges[static_cast<std::size_t>((thread_idx + i) % num_threads)];
      while (!has_failed.load(std::memory_order_relaxed)) {
        const int64_t chunk = range.next.fetch_add(1, std::memory_order_relaxed);
        if (chunk >= range.end) break;
        run_chunk(chunk, thread_idx);
      }
    }
  }

  void run_chunk(int64_t chunk, int thread_idx) {
    const int64_t begin = chunk * grain;
    try {
      FASTLLM_FAULT_POINT(kKernel, kDevice, "thread pool");
      task(context, begin, std::min(begin + grain, num_units), thread_idx);
    } catch (...) {
      if (!has_failed.exchange(true)) exception = std::current_exception();
    }
  }

  void worker_loop(int thread_idx) {
    pthread_setname_np(pthread_self(), "fastllm-worker");
    uint64_t seen = 0;
    while (true) {
      wait_for_job(seen);
      if (is_stopping.load(std::memory_order_acquire)) return;
      uint64_t state = gate.load(std::memory_order_acquire);
      seen = generation_of(state);
      bool is_inside = false;
      while ((state & kOpen) != 0 && generation_of(state) == seen && !is_inside) {
        is_inside = gate.compare_exchange_weak(state, state + 1, std::memory_order_acquire, std::memory_order_acquire);
      }
      if (!is_inside) continue;
      work(thread_idx);
      gate.fetch_sub(1, std::memory_order_release);
    }
  }

  void wait_for_job(uint64_t seen) {
    const auto has_news = [&] {
      return generation_of(gate.load(std::memory_order_seq_cst)) != seen || is_stopping.load(std::memory_order_seq_cst);
    };
    if (spin_until(kHotMicroseconds, has_news)) return;
    std::unique_lock lock(mutex);
    // Sequentially consistent on both sides: either this worker sees the new gate, or the caller sees a sleeper.
    num_sleeping.fetch_add(1, std::memory_order_seq_cst);
    wake.wait(lock, has_news);
    num_sleeping.fetch_sub(1, std::memory_order_seq_cst);
  }

  void wake_sleepers() {
    if (num_sleeping.load(std::memory_order_seq_cst) == 0 || !has_helpers()) return;
    {
      const std::lock_guard lock(mutex);
    }  // a worker between its check and its wait holds the mutex
    wake.notify_all();
  }

  // In a forked child the helpers do not exist: the caller works alone, and waits for nobody.
  [[nodiscard]] bool has_helpers() const { return owner_pid == getpid(); }

  void stop() {
    is_stopping.store(true, std::memory_order_seq_cst);
    wake_sleepers();
    for (std::thread& thread : threads) thread.join();
  }

  std::vector<Range> ranges;
  std::vector<std::thread> threads;
  const pid_t owner_pid = getpid();

  alignas(kCacheLine) std::atomic<uint64_t> gate{0};
  alignas(kCacheLine) std::atomic<int> num_sleeping{0};
  std::atomic<bool> is_stopping{false};
  std::mutex mutex;
  std::condition_variable wake;

  // The job. Written by the caller while the gate is closed and nobody is inside.
  int64_t num_units = 0;
  int64_t grain = 1;
  Task task = nullptr;
  void* context = nullptr;
  std::atomic<bool> is_busy{false};
  std::atomic<bool> has_failed{false};
  std::exception_ptr exception;  // written by the one thread that sets has_failed
};

ThreadPool::ThreadPool(int num_threads) {
  if (num_threads < 1) fail(ErrorKind::kInvalidRequest, "num_threads is ", num_threads, "; at least 1 is needed");
  impl_ = std::make_unique<Impl>(num_threads);
  impl_->threads.reserve(static_cast<std::size_t>(num_threads));
  try {
    for (int i = 1; i < num_threads; ++i)
      impl_->threads.emplace_back([impl = impl_.get(), i] { impl->worker_loop(i); });
  } catch (const std::system_error& e) {
    const std::size_t num_started = impl_->threads.size();
    impl_->stop();
    fail(ErrorKind::kDevice, "thread pool: thread ", num_started + 1, " of ", num_threads - 1,
         " could not be started: ", e.what());
  } catch (...) {  // no memory for its description
    impl_->stop();
    throw;
  }
}

ThreadPool::~ThreadPool() {
  if (!impl_->has_helpers()) {
    // Joining them, or destroying what they wait on, would hang.
    static_cast<void>(impl_.release());
    return;
  }
  impl_->stop();
}

int ThreadPool::size() const { return static_cast<int>(impl_->ranges.size()); }

void ThreadPool::run(int64_t num_units, int64_t grain, Task task, void* context) {
  if (num_units <= 0) return;
  FASTLLM_CHECK(grain > 0, "parallel_for with grain ", grain);
  const int64_t num_chunks = ceil_div(num_units, grain);
  const int num_threads = size();
  Impl& job = *impl_;
  // A body that calls parallel_for would overwrite the job that it is part of. (Also after a fork in the middle of
  // one.)
  if (job.is_busy.exchange(true, std::memory_order_acquire)) {
    fail(ErrorKind::kInternal, "parallel_for was called while another one runs on the same pool");
  }
  struct Done {
    std::atomic<bool>& is_busy;
    ~Done() { is_busy.store(false, std::memory_order_release); }
  } const done{job.is_busy};
  if (num_chunks == 1 || num_threads == 1) {  // nobody to wake
    for (int64_t begin = 0; begin < num_units; begin += grain) {
      FASTLLM_FAULT_POINT(kKernel, kDevice, "thread pool");
      task(context, begin, std::min(begin + grain, num_units), 0);
    }
    return;
  }

  job.num_units = num_units;
  job.grain = grain;
  job.task = task;
  job.context = context;
  job.has_failed.store(false, std::memory_order_relaxed);
  for (int i = 0; i < num_threads; ++i) {
    Impl::Range& range = job.ranges[static_cast<std::size_t>(i)];
    // Split as quotient and remainder: num_chunks * i could overflow.
    const int64_t quotient = num_chunks / num_threads;
    const int64_t remainder = num_chunks % num_threads;
    const int64_t begin = quotient * i + std::min<int64_t>(i, remainder);
    range.next.store(begin, std::memory_order_relaxed);
    range.end = begin + quotient + (i < remainder ? 1 : 0);
  }
  const uint64_t closed = job.gate.load(std::memory_order_relaxed);
  job.gate.store((closed & ~(kGenerationStep - 1)) + kGenerationStep + kOpen, std::memory_order_seq_cst);
  job.wake_sleepers();

  job.work(0);

  job.gate.fetch_and(~kOpen, std::memory_order_acq_rel);
  const auto is_empty = [&] { return (job.gate.load(std::memory_order_acquire) & kInsideMask) == 0; };
  while (!spin_until(kHotMicroseconds, is_empty)) {
  }
  if (job.has_failed.load(std::memory_order_relaxed)) std::rethrow_exception(std::exchange(job.exception, nullptr));
}

namespace {

// "0-1,8" and the like name one physical core; equal strings are siblings.
int count_physical_cores(const cpu_set_t& allowed) {
  std::set<std::string> cores;
  for (int cpu = 0; cpu < CPU_SETSIZE; ++cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    std::ifstream file("/sys/devices/system/cpu/cpu" + std::to_string(cpu) + "/topology/thread_siblings_list");
    std::string siblings;
    if (!std::getline(file, siblings)) siblings = std::to_string(cpu);  // unknown: a core of its own
    cores.insert(siblings);
  }
  return static_cast<int>(cores.size());
}

// Whole processors that the control group grants; 0 when it sets no limit.
int64_t read_cgroup_quota() {
  std::ifstream file("/sys/fs/cgroup/cpu.max");  // "max 100000" or "150000 100000"
  int64_t quota = 0;
  int64_t period = 0;
  if (!(file >> quota >> period) || quota <= 0 || period <= 0) return 0;
  return std::max<int64_t>(1, quota / period);
}

}  // namespace

int default_num_threads() {
  int num_threads = static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
  cpu_set_t allowed;
  CPU_ZERO(&allowed);
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) {
    num_threads = std::min(CPU_COUNT(&allowed), count_physical_cores(allowed));
  }
  const int64_t quota = read_cgroup_quota();
  if (quota > 0) num_threads = static_cast<int>(std::min<int64_t>(num_threads, quota));
  return std::max(1, num_threads);
}

}  // namespace fastllm
