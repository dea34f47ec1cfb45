// One step as the executor sees it: fixed-capacity arrays, filled by StepBuilder, read through StepView.
//
// Capacities come from EngineConfig once; filling a step allocates nothing. Order of work in the executor:
//   copy pages (copy_from[i] -> copy_to[i]; no page is both source and destination)  ->  forward  ->  pool  ->  sample.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "ops/ops.h"
#include "ops/sampling.h"

namespace fastllm {

struct Sequence;

// Consecutive token rows whose final hidden states are added to `sum`, first to last: however a prompt is cut into
// steps, the order of the sum is that of the positions.
struct PooledRows {
  int64_t begin = 0;  // in Step::pooled_rows
  int64_t end = 0;
  double* sum = nullptr;  // [E]
};

constexpr int64_t kMaxTopLogprobs = 20;

struct Step {
  StepView view;  // points into the arrays below

  std::vector<int32_t> token_ids;    // [T]
  std::vector<int32_t> positions;    // [T]
  std::vector<int32_t> query_start;  // [S + 1]
  std::vector<int32_t> context_len;  // [S]
  std::vector<int32_t> block_table;  // [S, view.max_pages], padded with page 0
  std::vector<int64_t> slots;        // [T]

  // If set, the executor calls it when the forward pass has been computed and before it samples, with the seconds that
  // the pass took: fills the masks that were made meanwhile into `rows`.
  std::function<void(double forward_s)> before_sample;
  double sample_begin_s = 0.0;  // monotonic_s() between forward and sample, set by the executor; 0: not known
  int64_t read_bytes = 0;       // of the forward pass, without experts, set by the executor; see engine/read_bytes.h

  std::vector<int32_t> copy_from;  // copy-on-write, before the forward pass
  std::vector<int32_t> copy_to;

  // Rows that want logits. All have size R; rows[r].top_tokens points into top_tokens.
  std::vector<int32_t> logit_rows;    // [R] token row in [0, T), ascending
  std::vector<SampleRow> rows;        // [R]
  std::vector<SampleResult> results;  // [R] filled by the executor
  std::vector<Sequence*> owners;      // [R] the sequence that a row belongs to
  std::vector<int32_t> top_tokens;    // [R * kMaxTopLogprobs]
  std::vector<float> top_logprobs;    // [R * kMaxTopLogprobs]

  // Rows of embeddings.
  std::vector<int32_t> pooled_rows;  // token row in [0, T), ascending
  std::vector<PooledRows> pooled;    // one per sequence that has some

  [[nodiscard]] int64_t num_rows() const { return static_cast<int64_t>(rows.size()); }
};

}  // namespace fastllm
