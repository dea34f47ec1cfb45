// Sampling row by row with the shared algorithm of ops/.
#include "ops/sampling_algorithm.h"
#include "reference/reference_backend.h"

namespace fastllm::reference {

void ReferenceBackend::sample(const SampleArgs& args) {
  Arena plan;
  SampleScratch::take(plan, args.vocab_size);
  const Buffer memory(plan.used(), "sampling scratch");
  Arena arena({memory.data(), static_cast<std::size_t>(memory.size())});
  const SampleScratch scratch = SampleScratch::take(arena, args.vocab_size);
  for (int64_t r = 0; r < args.num_rows; ++r) {
    const std::span<float> logits(args.logits + r * args.stride, static_cast<std::size_t>(args.vocab_size));
    args.results[r] = sample_row(logits, args.rows[r], scratch);
  }
}

}  // namespace fastllm::reference
