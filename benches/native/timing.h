// The fastest of many short runs. Other work on a machine only adds time, so the minimum is what repeats.
#pragma once

#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>

namespace fastllm::bench {

// Runs body() as often as the benchmark wants and returns the seconds of the fastest run.
template <class Body>
double fastest(benchmark::State& state, Body&& body) {
  double best = 1e30;
  for ([[maybe_unused]] auto _ : state) {
    const auto start = std::chrono::steady_clock::now();
    body();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

}  // namespace fastllm::bench
