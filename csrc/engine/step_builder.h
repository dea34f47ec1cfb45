// Fills a Step from a StepPlan. All arrays have their capacity from the start: no allocation per step.
#pragma once

#include "engine/config.h"
#include "engine/scheduler.h"
#include "engine/step.h"

namespace fastllm {

class StepBuilder {
 public:
  explicit StepBuilder(const EngineConfig& config);
  // Valid until the next call. Rows of one sequence are consecutive, in the order of plan.items.
  Step& build(const StepPlan& plan);

 private:
  void add_tokens(const ScheduledTokens& item);
  void add_rows(const ScheduledTokens& item, int64_t first_token_row);
  void add_pooled(const ScheduledTokens& item, int64_t first_token_row);
  void add_block_table(const StepPlan& plan);

  const EngineConfig& config_;
  Step step_;
};

}  // namespace fastllm
