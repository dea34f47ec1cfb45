// The native tests' own small frame: NATIVE_TEST(name) { ... require(...); } and a main() that runs them all.
//
//   program [--only TEXT] [--seed S] [--schedules N] [--stride N]        exit code 1 and the seed on failure
#pragma once

#include <cstdint>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

#include "core/error.h"

namespace fastllm::test {

struct Options {
  uint64_t seed = 1;
  int64_t schedules = 10000;  // of random tests; the cheap ones take more, the dear ones fewer
  int64_t stride = 1;         // fault sweeps try every stride-th point
  std::string only;           // run tests whose name contains this
};
const Options& options();

using Body = void (*)();
bool add_test(const char* name, Body body);

#define NATIVE_TEST(name)                                                                   \
  static void name();                                                                       \
  [[maybe_unused]] static const bool name##_added = ::fastllm::test::add_test(#name, name); \
  static void name()

inline void require(bool condition, std::string_view what) {
  if (!condition) throw std::runtime_error(std::string(what));
}
template <class A, class B>
void require_equal(const A& got, const B& want, std::string_view what) {
  if (got == want) return;
  std::ostringstream text;
  text << what << ": got " << got << ", expected " << want;
  throw std::runtime_error(text.str());
}
// The call throws Error of this kind; returns its text.
template <class Call>
std::string require_error(ErrorKind kind, Call&& call, const std::string& what) {
  try {
    call();
  } catch (const Error& e) {
    require(e.kind() == kind, what + ": the wrong kind of error: " + e.what());
    return e.what();
  }
  throw std::runtime_error(what + ": nothing was thrown");
}

class Random {
 public:
  explicit Random(uint64_t seed) : engine_(seed) {}
  int64_t pick(int64_t min, int64_t max) { return std::uniform_int_distribution<int64_t>(min, max)(engine_); }
  bool chance(int64_t percent) { return pick(1, 100) <= percent; }
  double real(double min, double max) { return std::uniform_real_distribution<double>(min, max)(engine_); }

 private:
  std::mt19937_64 engine_;
};

}  // namespace fastllm::test
