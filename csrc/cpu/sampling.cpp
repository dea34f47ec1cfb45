// `sample`: rows in parallel, each by the algorithm that all backends share.
#include "core/error.h"
#include "cpu/cpu_backend.h"

namespace fastllm::cpu {

void CpuBackend::sample(const SampleArgs& args) {
  const auto vocab_size = static_cast<std::size_t>(args.vocab_size);
  if (args.num_rows == 0) return;
  FASTLLM_CHECK(!scratch_.threads.empty() && vocab_size <= scratch_.threads[0].sampling.raw.size(),
                "sample: vocabulary of ", vocab_size, " is larger than reserve() planned for");
  pool_.parallel_for(args.num_rows, 1, [&](int64_t row, int64_t, int thread_idx) {
    args.results[row] = sample_row({args.logits + row * args.stride, vocab_size}, args.rows[row],
                                   scratch_.threads[static_cast<std::size_t>(thread_idx)].sampling, kernels_.sampling);
  });
}

}  // namespace fastllm::cpu
