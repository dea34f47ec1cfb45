// An executor without a model, for tests of everything around it. Its "K/V" is the token id and the position of each
// slot; the next token is a hash of all tokens of the context as found through the block table. A wrong table, a stale
// or shared page, a missed copy, a skipped chunk: each gives another token, or a position that does not fit (counted).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/config.h"
#include "engine/executor.h"

namespace fastllm {

// Shared with the test that steers it.
struct FakeControls {
  std::atomic<int64_t> fail_in{0};     // > 0: the n-th execute() from now throws
  std::atomic<int64_t> delay_us{0};    // of every execute()
  std::atomic<int64_t> nan_token{-1};  // a context that holds this token gives non-finite rows
  std::atomic<int64_t> num_bad_reads{0};
  std::atomic<int64_t> num_steps{0};
};

// The token that the fake draws after `context` with these parameters; -1 if none is allowed. Greedy rows depend on the
// context alone, others on seed, sequence and position as well; penalties mix in the counts.
int32_t fake_next_token(std::span<const int32_t> context, const SampleRow& row, int64_t vocab_size);

class FakeExecutor final : public Executor {
 public:
  FakeExecutor(const EngineConfig& config, std::shared_ptr<FakeControls> controls);
  void execute(Step& step) override;
  [[nodiscard]] ExpertTotals expert_totals() override { return {}; }

 private:
  struct Cell {
    int32_t token = -1;
    int32_t position = -1;
  };
  void copy_pages(const Step& step);
  void store(const StepView& step);
  // The tokens of sequence s up to and including `position`.
  std::span<const int32_t> read(const StepView& step, int64_t s, int64_t position);
  void pool(const Step& step);
  void sample(Step& step, int64_t row, int64_t s);

  int64_t page_size_;
  int64_t vocab_size_;
  std::shared_ptr<FakeControls> controls_;
  std::vector<Cell> cells_;       // [num_pages * P]
  std::vector<int32_t> context_;  // of the row at hand
};

}  // namespace fastllm
