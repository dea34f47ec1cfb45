// The arithmetic of `sample` for one row, shared by the backends so that they draw the same token. ops/sampling.h has
// the order of the steps; this is what each of them means.
//
// Candidates are ordered by descending logit, then ascending id. top_k, top_p and min_p each keep a prefix of that
// order, so each of them is a cutoff (the last candidate kept) and the vocabulary is never sorted:
//   top_k  keeps the first k.
//   top_p  keeps the shortest prefix whose probability, among the top_k, is at least top_p.
//   min_p  keeps candidates whose probability is at least min_p times the largest.
// Probabilities are exp((logit - largest) / temperature) in double; sums run in ascending id. The draw takes
// u = uniform(seed, sequence, position) and walks the kept ids upwards until the cumulative sum passes u * total.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "core/buffer.h"
#include "ops/sampling.h"
#include "ops/sampling_scans.h"

namespace fastllm {

// Memory for one row at a time; one per thread.
struct SampleScratch {
  struct Candidate {
    double weight;
    float logit;
    int32_t token;
  };
  std::span<Candidate> candidates;  // [V]
  std::span<float> raw;             // [V]
  std::span<int32_t> ids;           // [kMaxListed]
  std::span<double> sums;           // [V / kSampleBlock, rounded up]

  // Takes the memory from an arena, or counts it if the arena is planning.
  static SampleScratch take(Arena& arena, int64_t vocab_size);
};

// One row, all steps. Overwrites `logits`. Writes row.top_tokens and row.top_logprobs (token -1 and -infinity where the
// row is not finite). Never throws, never allocates.
// With scans the token is the same, found faster; log-probabilities differ by less than 1e-6 of themselves.
SampleResult sample_row(std::span<float> logits, const SampleRow& row, const SampleScratch& scratch,
                        const SampleScans* scans = nullptr);

}  // namespace fastllm
