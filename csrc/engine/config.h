// What an engine is told once, when it is made. All sizes of its arrays follow from this.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "text/output_text.h"

namespace fastllm {

struct EngineConfig {
  int64_t num_pages = 0;
  int64_t page_size = 0;                 // P of the backend
  int64_t vocab_size = 0;                // of the model: token ids are checked against it
  int64_t hidden_size = 0;               // E of the model, the length of an embedding
  int64_t max_model_len = 0;             // prompt + output of one sequence
  int64_t max_num_seqs = 64;             // S
  int64_t max_num_batched_tokens = 512;  // T
  int64_t max_logit_rows = 64;           // R, at least max_num_seqs
  int64_t max_queue = 512;               // requests that were submitted and not yet scheduled
  bool enable_prefix_caching = true;
  bool static_batching = false;  // nobody joins a batch that runs: for comparison with continuous batching
  uint64_t seed = 0;             // of requests that bring none
  std::vector<int32_t> eos_ids;
  std::shared_ptr<const ByteTable> byte_table;  // nullptr: no text, stop strings are refused
};

// Throws kInvalidRequest naming the field and its bound.
void check(const EngineConfig& config);

// Longest sequence (prompt + output) that this engine can ever hold.
int64_t max_sequence_len(const EngineConfig& config);

}  // namespace fastllm
