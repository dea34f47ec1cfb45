// Passes over the logits x[0, n) of a row. A backend that has them (vectorised) hands them to sample_row().
// Included by kernel files: nothing here may have linkage.
#pragma once

#include <cstdint>

namespace fastllm {

constexpr int64_t kSampleBlock = 1024;   // logits per sum of exp_sums
constexpr int64_t kMaxListed = 1 << 14;  // ids that are ever listed; more are looked at one by one
constexpr int64_t kMinScanned = 256;     // shorter rows are not worth it
constexpr double kExpSumError = 3e-7;    // bound for the relative error of a sum of exp_sums

struct SampleScans {
  // The largest; NaN if one is NaN or +infinity; -infinity if there is nothing else.
  float (*largest)(const float* x, int64_t n);
  // Ids of logits >= threshold from *begin on, ascending, until fewer than 16 places are left. Moves *begin to where it
  // stopped, n at the end. Returns how many.
  int64_t (*collect)(const float* x, int64_t* begin, int64_t n, float threshold, int32_t* ids, int64_t capacity);
  // sums[b] = sum over block b of exp((x - top) / temperature), within kExpSumError if |top| <= 1e7 * temperature; the
  // same bits on every level.
  void (*exp_sums)(const float* x, int64_t n, float top, float temperature, double* sums);
  // How many are larger than `logit`, or as large with a smaller id.
  int64_t (*count_before)(const float* x, int64_t n, float logit, int64_t id);
};

}  // namespace fastllm
