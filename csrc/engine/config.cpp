#include "engine/config.h"

#include <algorithm>

#include "core/checked.h"

namespace fastllm {
namespace {

void check_field(const char* name, int64_t value, int64_t min, int64_t max) {
  if (value >= min && value <= max) return;
  fail(ErrorKind::kInvalidRequest, "engine: ", name, " = ", value, " is not in [", min, ", ", max, "]");
}

}  // namespace

void check(const EngineConfig& c) {
  constexpr int64_t kMax = INT32_MAX;
  check_field("num_pages", c.num_pages, 1, kMax);
  check_field("page_size", c.page_size, 1, 1 << 16);
  check_field("vocab_size", c.vocab_size, 1, kMax);
  check_field("max_model_len", c.max_model_len, 2, kMax);
  check_field("max_num_seqs", c.max_num_seqs, 1, 1 << 16);
  // Every running sequence can then decode in every step, and one that still reads its prompt gets at least one token.
  check_field("max_num_batched_tokens", c.max_num_batched_tokens, c.max_num_seqs, 1 << 24);
  check_field("max_logit_rows", c.max_logit_rows, c.max_num_seqs, 1 << 24);
  check_field("max_queue", c.max_queue, 1, kMax);
  for (const int32_t id : c.eos_ids) check_field("eos token id", id, 0, c.vocab_size - 1);
}

int64_t max_sequence_len(const EngineConfig& c) {
  // The last token is never fed back, so it needs no place in the pages.
  return std::min(c.max_model_len, checked_mul(c.num_pages, c.page_size, "KV pool") + 1);
}

}  // namespace fastllm
