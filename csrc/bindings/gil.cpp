#include "bindings/gil.h"

#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <thread>

namespace nb = nanobind;

namespace fastllm {
namespace {

// Sequentially consistent: either a thread sees that the interpreter ends, or the hook sees the thread.
std::atomic<bool> is_ending{false};
std::atomic<pthread_t> ending_thread{};
std::atomic<int64_t> num_returning{0};  // threads between native code and the GIL

// One who waits longer than this for the GIL has another problem than ours.
constexpr auto kLongestWait = std::chrono::seconds(1);

[[noreturn]] void wait_for_the_end() {
  while (true) pause();
}

void end_of_interpreter() {
  ending_thread = pthread_self();
  is_ending = true;
  const GilRelease release;
  const auto deadline = std::chrono::steady_clock::now() + kLongestWait;
  while (num_returning != 0 && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}

}  // namespace

GilRelease::GilRelease() : state_(PyEval_SaveThread()) {}

GilRelease::~GilRelease() {
  ++num_returning;
  if (is_ending && pthread_equal(ending_thread, pthread_self()) == 0) {
    --num_returning;
    wait_for_the_end();
  }
  PyEval_RestoreThread(state_);
  --num_returning;
}

void bind_gil(nb::module_& m) {
  m.def("end_of_interpreter", &end_of_interpreter,
        "The atexit hook: from now on, other threads that come back from native code wait for the end of the process.");
  nb::module_::import_("atexit").attr("register")(m.attr("end_of_interpreter"));
  // A child of fork() has none of the threads that were counted.
  pthread_atfork(nullptr, nullptr, [] { num_returning = 0; });
}

}  // namespace fastllm
