#include "core/fault.h"

#ifdef FASTLLM_FAULTS

#include <array>
#include <atomic>
#include <cstdlib>
#include <cstring>

namespace fastllm::fault {
namespace {

struct State {
  std::atomic<int64_t> passes{0};
  std::atomic<int64_t> first{0};  // 0: disarmed
  std::atomic<int64_t> count{1};
};

constexpr std::array<const char*, 4> kNames = {"alloc", "kernel", "queue", "io"};

// Test builds only: the one mutable global of the core, because a fault point must be reachable from anywhere.
std::array<State, 4>& states() {
  static std::array<State, 4> all;
  static const bool initialised = [] {
    const char* text = std::getenv("FASTLLM_FAULT");
    if (text == nullptr) return true;
    for (std::size_t i = 0; i < kNames.size(); ++i) {
      const std::size_t length = std::strlen(kNames[i]);
      if (std::strncmp(text, kNames[i], length) == 0 && text[length] == ':') {
        all[i].first = std::atoll(text + length + 1);
      }
    }
    return true;
  }();
  (void)initialised;
  return all;
}

}  // namespace

bool should_fail(Point point) {
  State& state = states()[static_cast<std::size_t>(point)];
  const int64_t pass = ++state.passes;
  const int64_t first = state.first.load();
  return first > 0 && pass >= first && pass - first < state.count.load();
}

void arm(Point point, int64_t nth, int64_t count) {
  State& state = states()[static_cast<std::size_t>(point)];
  state.first = 0;
  state.passes = 0;
  state.count = count;
  state.first = nth;
}

int64_t passes(Point point) { return states()[static_cast<std::size_t>(point)].passes; }

}  // namespace fastllm::fault

#endif
