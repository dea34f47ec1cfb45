// Ways to the token of the definition that do not look at every logit in double.
#pragma once

#include "ops/sampling_parts.h"

namespace fastllm::sampling {

// The first candidate, whose logit `top` is finite.
Candidate find_first(const SampleScans& scans, std::span<const float> logits, float top, const SampleScratch& scratch);
std::span<Candidate> select_top(const SampleScans& scans, std::span<const float> logits, std::size_t k,
                                const SampleScratch& scratch);
// Whether exp_sums() keeps its bound: only then may sum_of_exp() be called.
bool can_sum(float largest, float temperature);
double sum_of_exp(const SampleScans& scans, std::span<const float> logits, float largest, float temperature,
                  const SampleScratch& scratch);

// The ids of candidates above -infinity, ascending; empty (all ids) if they are too many to be listed.
std::span<const int32_t> ids_of(std::span<const Candidate> candidates, const SampleScratch& scratch);

// What is known of a draw without top_k. `token`, if it is certain. Else `ids`, ascending: every id that can be drawn
// is among them (empty: all ids); with has_cutoff, top_p has been applied.
struct Narrowed {
  int32_t token = -1;
  std::span<const int32_t> ids;
  bool has_cutoff = false;
  Cutoff cutoff;
};
Narrowed narrow(const SampleScans& scans, std::span<const float> logits, const SampleRow& row, const Weigher& weigher,
                const SampleScratch& scratch);

}  // namespace fastllm::sampling
