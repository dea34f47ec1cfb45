// Whole rows of logits of one sequence, for evaluation: a model without scheduler, sampler and thread.
//
// Takes the model as an engine does, and like it allocates all its memory at the start. By batch invariance the rows
// are those that an engine samples from, bit for bit, however a sequence is cut.
// Thread contract: one call at a time.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "engine/model_executor.h"

namespace fastllm {

class Scorer {
 public:
  // Sequences of up to max_tokens; the model runs over up to `chunk` tokens at once.
  Scorer(std::shared_ptr<Model> model, int64_t max_tokens, int64_t chunk, DType kv_dtype);

  // Appends to the sequence. Row i of logits [num_rows, V] belongs to the token that follows token_ids[first_row + i],
  // num_rows = token_ids.size() - first_row. Throws kInvalidRequest if it does not fit or an id is unknown.
  void append(std::span<const int64_t> token_ids, int64_t first_row, float* logits);
  // Begins the next sequence.
  void clear() { num_tokens_ = 0; }

  [[nodiscard]] int64_t num_tokens() const { return num_tokens_; }
  [[nodiscard]] int64_t vocab_size() const { return model_->spec.vocab_size; }

 private:
  [[nodiscard]] StepLimits limits() const;

  ModelClaim model_;
  int64_t page_size_;
  int64_t max_tokens_;
  int64_t chunk_;
  KvStorage kv_;
  Decoder decoder_;
  DeviceStep device_step_;
  std::vector<int32_t> block_table_;  // page i of the sequence is page i
  int64_t num_tokens_ = 0;
};

}  // namespace fastllm
