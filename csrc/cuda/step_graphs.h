// Recorded steps by key. How many are kept is bounded, and so is the memory that they take: the one that was used
// longest ago goes first.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>

#include "cuda/fl/host.h"
#include "ops/ops.h"

namespace fastllm::cuda {

class StepGraphs {
 public:
  // Memory of the device that the graphs of a model may take. 0 for limits without layers: nothing is recorded then.
  [[nodiscard]] static int64_t bytes(const OpLimits& limits);

  // Forgets all.
  void reserve(const OpLimits& limits);
  // nullptr: none is kept under this key. Counts as a use.
  [[nodiscard]] const fl::Graph* find(uint64_t key);
  // Drops others for it where they are too many; none of them may be running.
  void keep(uint64_t key, fl::Graph graph);
  // Whether keep() of a graph would drop others.
  [[nodiscard]] bool is_full(int64_t num_launches) const;
  // From any thread.
  [[nodiscard]] int64_t size() const { return size_; }

 private:
  struct Kept {
    fl::Graph graph;
    uint64_t last_use = 0;
  };

  std::map<uint64_t, Kept> graphs_;
  int64_t max_launches_ = 0;  // of all together
  int64_t num_launches_ = 0;
  uint64_t num_uses_ = 0;
  std::atomic<int64_t> size_{0};
};

}  // namespace fastllm::cuda
