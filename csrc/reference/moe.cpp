// Mixture of experts: which experts a token goes to, and the weighted sum of what they give, in double.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "reference/reference_backend.h"

namespace fastllm::reference {

void ReferenceBackend::moe_route(const MoeRouteArgs& args) {
  const auto num_experts = static_cast<std::size_t>(args.logits.cols);
  const auto k = static_cast<std::size_t>(args.top_k);
  std::vector<double> scores(num_experts);
  std::vector<int32_t> order(num_experts);
  for (int64_t t = 0; t < args.logits.rows; ++t) {
    const float* logits = args.logits.row<float>(t);
    std::iota(order.begin(), order.end(), 0);
    // A NaN would break the order's strictness; it sorts last and shows in the weights instead.
    const auto key = [&](int32_t e) { return std::isnan(logits[e]) ? -INFINITY : logits[e]; };
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return key(a) > key(b); });
    const double top = logits[order[0]];
    double sum = 0.0;
    const std::size_t counted = args.score == RouteScore::kSoftmaxOfTopK ? k : num_experts;
    for (std::size_t i = 0; i < num_experts; ++i) {
      const double logit = logits[order[i]];
      scores[i] = args.score == RouteScore::kSigmoid ? sigmoid(logit) : std::exp(logit - top);
      if (i < counted) sum += scores[i];
    }
    if (args.score == RouteScore::kSigmoid) sum = 1.0;
    double chosen = 0.0;
    for (std::size_t i = 0; i < k; ++i) chosen += scores[i] / sum;
    for (std::size_t i = 0; i < k; ++i) {
      const std::size_t at = static_cast<std::size_t>(t) * k + i;
      args.experts[at] = order[i];
      args.weights[at] = static_cast<float>(scores[i] / sum / (args.renormalize ? chosen : 1.0) * args.weight_scale);
    }
  }
}

namespace {

void count_use(const MoeFfnArgs& args) {
  std::vector<int64_t> counts(static_cast<std::size_t>(args.gate_up->desc.num_experts), 0);
  for (int64_t i = 0; i < args.x.rows * args.top_k; ++i) ++counts[static_cast<std::size_t>(args.experts[i])];
  for (std::size_t e = 0; e < counts.size(); ++e) {
    args.use[e].num_tokens += counts[e];
    args.use[e].num_reads += counts[e] > 0 ? 1 : 0;
  }
}

}  // namespace

void ReferenceBackend::moe_ffn(const MoeFfnArgs& args) {
  const int64_t ffn_dim = args.down->desc.k;
  const auto k = static_cast<std::size_t>(args.top_k);
  std::vector<float> activated(static_cast<std::size_t>(ffn_dim));
  std::vector<double> gate_up(static_cast<std::size_t>(2 * ffn_dim));
  std::vector<double> down(static_cast<std::size_t>(args.y.cols));
  std::vector<std::size_t> ascending(k);
  std::vector<double> sum(static_cast<std::size_t>(args.y.cols));
  if (args.use != nullptr) count_use(args);
  for (int64_t t = 0; t < args.x.rows; ++t) {
    const float* x = args.x.row<float>(t);
    const int32_t* experts = args.experts + t * args.top_k;
    std::iota(ascending.begin(), ascending.end(), std::size_t{0});
    std::sort(ascending.begin(), ascending.end(),
              [&](std::size_t a, std::size_t b) { return experts[a] < experts[b]; });
    std::fill(sum.begin(), sum.end(), 0.0);
    for (const std::size_t i : ascending) {
      const int64_t expert = experts[i];
      const auto bias = [&](const float* all, int64_t width, int64_t at) {
        return all != nullptr ? static_cast<double>(all[expert * width + at]) : 0.0;
      };
      products(*args.gate_up, expert, x, gate_up.data());
      for (int64_t f = 0; f < ffn_dim; ++f) {
        const auto at = static_cast<std::size_t>(f);
        const double gate = gate_up[at] + bias(args.gate_up_bias, 2 * ffn_dim, f);
        const double up =
            gate_up[at + static_cast<std::size_t>(ffn_dim)] + bias(args.gate_up_bias, 2 * ffn_dim, ffn_dim + f);
        activated[at] = gated(args.activation, static_cast<float>(gate), static_cast<float>(up));
      }
      const double weight = args.weights[static_cast<std::size_t>(t) * k + i];
      products(*args.down, expert, activated.data(), down.data());
      for (int64_t e = 0; e < args.y.cols; ++e) {
        const auto at = static_cast<std::size_t>(e);
        sum[at] += weight * (down[at] + bias(args.down_bias, args.y.cols, e));
      }
    }
    for (int64_t e = 0; e < args.y.cols; ++e)
      args.y.row<float>(t)[e] = static_cast<float>(sum[static_cast<std::size_t>(e)]);
  }
}

}  // namespace fastllm::reference
