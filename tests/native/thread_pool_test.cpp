// The thread pool: every unit runs once, exceptions come out at the caller, and nothing hangs afterwards.
#include "core/thread_pool.h"

#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "core/fault.h"
#include "harness.h"

namespace fastllm::test {
namespace {

// Runs a job and checks the promise of parallel_for on every range that it hands out.
void check_job(ThreadPool& pool, int64_t num_units, int64_t grain) {
  std::vector<std::atomic<int>> visits(static_cast<std::size_t>(num_units));
  std::atomic<bool> is_misshapen{false};
  pool.parallel_for(num_units, grain, [&](int64_t begin, int64_t end, int thread_idx) {
    const bool is_one_chunk = begin < end && begin % grain == 0 && end <= begin + grain && end <= num_units;
    if (!is_one_chunk || thread_idx < 0 || thread_idx >= pool.size()) is_misshapen = true;
    for (int64_t i = begin; i < end; ++i) ++visits[static_cast<std::size_t>(i)];
  });
  const std::string name = std::to_string(num_units) + " units by " + std::to_string(grain);
  require(!is_misshapen, name + ": a range is not a chunk");
  for (const std::atomic<int>& count : visits) require_equal(count.load(), 1, name + ": visits of a unit");
}

NATIVE_TEST(every_unit_runs_exactly_once) {
  Random random(options().seed);
  for (const int num_threads : {1, 2, 3, 8}) {
    ThreadPool pool(num_threads);
    for (const int64_t num_units : {0, 1, 2, 7, 64, 1000}) {
      for (const int64_t grain : {1, 3, 64, 5000}) check_job(pool, num_units, grain);
    }
    for (int i = 0; i < 100; ++i) {
      check_job(pool, random.pick(0, 300), random.pick(1, 40));
      if (random.chance(3)) std::this_thread::sleep_for(std::chrono::microseconds(random.pick(0, 600)));
    }
  }
}

NATIVE_TEST(a_huge_job_does_not_overflow) {
  ThreadPool pool(3);
  const int64_t num_units = int64_t{1} << 62;
  const int64_t grain = num_units / 5;
  std::atomic<int64_t> sum{0};
  pool.parallel_for(num_units, grain, [&](int64_t begin, int64_t end, int) { sum += end - begin; });
  require_equal(sum.load(), num_units, "units");
}

NATIVE_TEST(more_threads_than_cores) {
  ThreadPool pool(32);
  for (int i = 0; i < 20; ++i) check_job(pool, 100, 1);
}

NATIVE_TEST(an_exception_comes_out_and_the_pool_goes_on) {
  for (const int num_threads : {1, 2, 5}) {
    ThreadPool pool(num_threads);
    for (const int64_t bad : {0, 1, 49, 98, 99}) {
      const std::string text = require_error(
          ErrorKind::kDevice,
          [&] {
            pool.parallel_for(100, 1, [bad](int64_t begin, int64_t, int) {
              if (begin == bad) fail(ErrorKind::kDevice, "unit ", begin);
            });
          },
          "an item that throws");
      require_equal(text, "unit " + std::to_string(bad), "message");
      check_job(pool, 100, 7);
    }
    // All of them at once: one exception comes out, the others go nowhere.
    require_error(
        ErrorKind::kDevice,
        [&] { pool.parallel_for(1000, 1, [](int64_t, int64_t, int) { fail(ErrorKind::kDevice, "each"); }); },
        "items that all throw");
    check_job(pool, 100, 7);
  }
}

NATIVE_TEST(an_injected_fault_comes_out_at_the_caller) {
  ThreadPool pool(4);
  for (int64_t nth = 1; nth <= 50; nth += 7) {
    fault::arm(fault::Point::kKernel, nth);
    require_error(ErrorKind::kDevice, [&] { pool.parallel_for(50, 1, [](int64_t, int64_t, int) {}); }, "a fault");
    fault::arm(fault::Point::kKernel, 0);
    check_job(pool, 50, 1);
  }
}

NATIVE_TEST(nested_use_is_refused) {
  for (const int num_threads : {1, 3}) {
    ThreadPool pool(num_threads);
    require_error(
        ErrorKind::kInternal,
        [&] {
          pool.parallel_for(10, 1,
                            [&](int64_t, int64_t, int) { pool.parallel_for(2, 1, [](int64_t, int64_t, int) {}); });
        },
        "parallel_for inside parallel_for");
    check_job(pool, 100, 3);
  }
}

NATIVE_TEST(bad_sizes_are_refused) {
  require_error(ErrorKind::kInvalidRequest, [] { ThreadPool pool(0); }, "no thread");
  require_error(ErrorKind::kInvalidRequest, [] { ThreadPool pool(-3); }, "-3 threads");
  ThreadPool pool(2);
  require_error(ErrorKind::kInternal, [&] { pool.parallel_for(4, 0, [](int64_t, int64_t, int) {}); }, "grain 0");
  check_job(pool, 10, 1);
}

#if !defined(__SANITIZE_THREAD__)  // it does not follow a fork of a process with threads
// The child has none of the helpers. Whatever state they slept or spun in, it must work alone and leave in peace.
NATIVE_TEST(a_forked_child_works_alone) {
  ThreadPool pool(4);
  for (int i = 0; i < 50; ++i) {
    check_job(pool, 64, 1);
    if (i % 2 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // now they sleep
    const pid_t child = fork();
    require(child >= 0, "fork failed");
    if (child == 0) {
      alarm(10);
      int status = 3;
      try {
        check_job(pool, 64, 1);
        pool.~ThreadPool();
        status = 0;
      } catch (...) {
      }
      _exit(status);
    }
    int status = 0;
    require(waitpid(child, &status, 0) == child, "waitpid failed");
    require(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child ended with status " + std::to_string(status));
  }
  check_job(pool, 64, 1);
}
#endif

}  // namespace
}  // namespace fastllm::test
