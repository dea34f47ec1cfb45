// Root mean square norm; the sum of squares runs in double, ascending index.
#include <algorithm>
#include <cmath>
#include <vector>

#include "reference/reference_backend.h"

namespace fastllm::reference {

void ReferenceBackend::rms_norm(const RmsNormArgs& args) {
  const bool has_residual = args.residual.data != nullptr;
  std::vector<float> sum(static_cast<std::size_t>(args.x.cols));
  for (int64_t i = 0; i < args.y.rows; ++i) {
    const int64_t from = args.row_ids != nullptr ? args.row_ids[i] : i;
    const float* x = args.x.row<float>(from);
    for (std::size_t e = 0; e < sum.size(); ++e) sum[e] = x[e];
    if (has_residual) {
      float* residual = args.residual.row<float>(from);
      for (std::size_t e = 0; e < sum.size(); ++e) sum[e] += residual[e];
      if (args.row_ids == nullptr) std::copy(sum.begin(), sum.end(), residual);
    }
    float* y = args.y.row<float>(i);
    for (int64_t begin = 0; begin < args.x.cols; begin += args.group) {
      const float* group = sum.data() + begin;
      double squares = 0.0;
      for (int64_t e = 0; e < args.group; ++e) squares += static_cast<double>(group[e]) * group[e];
      const double scale = 1.0 / std::sqrt(squares / static_cast<double>(args.group) + args.eps);
      for (int64_t e = 0; e < args.group; ++e) {
        y[begin + e] =
            static_cast<float>(group[e] * scale * (static_cast<double>(args.weight[e]) + args.weight_offset));
      }
    }
  }
}

}  // namespace fastllm::reference
