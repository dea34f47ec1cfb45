// What runs a step: a model on a backend, or the fake of the tests.
#pragma once

#include <vector>

#include "engine/step.h"

namespace fastllm {

// How experts were used so far.
struct ExpertTotals {
  std::vector<ExpertUse> use;  // [L, X]; empty: the model has none
  int64_t read_bytes = 0;      // of their weights
};

// Thread contract: made anywhere, then used and destroyed by one thread at a time.
class Executor {
 public:
  virtual ~Executor() = default;
  // Copies pages, runs the model, pools, samples: adds to the sums of step.pooled, fills step.results and the top
  // arrays of step.rows. An exception fails the sequences of this step and no others; K/V that the step wrote is then
  // never read again.
  virtual void execute(Step& step) = 0;
  // Waits for the device.
  [[nodiscard]] virtual ExpertTotals expert_totals() = 0;
};

}  // namespace fastllm
