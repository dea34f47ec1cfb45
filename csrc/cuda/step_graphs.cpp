#include "cuda/step_graphs.h"

#include <algorithm>

#include "core/checked.h"

namespace fastllm::cuda {
namespace {

// With 64 sequences of up to 8192 tokens there are 66 shapes of a decode step. One that is met again after it was
// dropped costs the time of recording it.
constexpr int64_t kMaxGraphs = 32;
// An allowance for what the driver keeps of one launch. Not measured: no chip was at hand.
constexpr int64_t kBytesPerLaunch = 16 << 10;

// More than any step has; what a graph has is counted when it is kept.
int64_t launches_of_step(const OpLimits& limits) {
  const int64_t per_layer = limits.num_experts > 0 ? 40 : 24;
  return checked_add(checked_mul(limits.num_layers, per_layer, "launches"), 16, "launches");
}

}  // namespace

int64_t StepGraphs::bytes(const OpLimits& limits) {
  if (limits.num_layers == 0) return 0;
  return checked_mul(kMaxGraphs * kBytesPerLaunch, launches_of_step(limits), "graphs of steps");
}

void StepGraphs::reserve(const OpLimits& limits) {
  graphs_.clear();
  size_ = 0;
  num_launches_ = 0;
  max_launches_ = kMaxGraphs * launches_of_step(limits);
}

const fl::Graph* StepGraphs::find(uint64_t key) {
  const auto it = graphs_.find(key);
  if (it == graphs_.end()) return nullptr;
  it->second.last_use = ++num_uses_;
  return &it->second.graph;
}

bool StepGraphs::is_full(int64_t num_launches) const {
  return std::ssize(graphs_) >= kMaxGraphs || num_launches_ + num_launches > max_launches_;
}

void StepGraphs::keep(uint64_t key, fl::Graph graph) {
  while (!graphs_.empty() && is_full(graph.num_launches())) {
    const auto oldest = std::ranges::min_element(graphs_, {}, [](const auto& entry) { return entry.second.last_use; });
    num_launches_ -= oldest->second.graph.num_launches();
    graphs_.erase(oldest);
  }
  num_launches_ += graph.num_launches();
  graphs_.emplace(key, Kept{std::move(graph), ++num_uses_});
  size_ = std::ssize(graphs_);
}

}  // namespace fastllm::cuda
