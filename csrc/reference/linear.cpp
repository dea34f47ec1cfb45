// Norms, linear layers, activations, experts, and the small elementwise operations. Sums run in double, ascending
// index.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "ops/sampling_algorithm.h"
#include "reference/reference_backend.h"

namespace fastllm::reference {
namespace {

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

double dot(const PackedWeight& w, int64_t expert, int64_t n, const float* x) {
  return with_float_dtype(dtype_of(w.desc.format), [&]<class T>(T) {
    const T* row = reinterpret_cast<const T*>(w.data) + (expert * w.desc.n + n) * w.desc.k;
    double sum = 0.0;
    for (int64_t k = 0; k < w.desc.k; ++k) sum += static_cast<double>(x[k]) * to_float(row[k]);
    return sum;
  });
}

}  // namespace

float gated(const ActivationSpec& spec, float gate, float up) {
  const double g = gate;
  const double u = up;
  switch (spec.kind) {
    case Activation::kSilu:
      return static_cast<float>(g * sigmoid(g) * u);
    case Activation::kGeluTanh: {
      constexpr double kSqrt2OverPi = 0.79788456080286535588;
      return static_cast<float>(0.5 * g * (1.0 + std::tanh(kSqrt2OverPi * (g + 0.044715 * g * g * g))) * u);
    }
    case Activation::kClampedSwiglu: {
      const double limit = spec.limit;
      const double clamped_gate = g > limit ? limit : g;  // NaN stays NaN
      const double clamped_up = u > limit ? limit : u < -limit ? -limit : u;
      return static_cast<float>(clamped_gate * sigmoid(spec.alpha * clamped_gate) * (clamped_up + 1.0));
    }
  }
  fail(ErrorKind::kInternal, "unknown activation");
}

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

void ReferenceBackend::linear(const LinearArgs& args) {
  for (int64_t m = 0; m < args.x.rows; ++m) {
    for (int64_t n = 0; n < args.weight->desc.n; ++n) {
      const double bias = args.bias != nullptr ? args.bias[n] : 0.0;
      args.y.row<float>(m)[n] = static_cast<float>(dot(*args.weight, 0, n, args.x.row<float>(m)) + bias);
    }
  }
}

void ReferenceBackend::gated_activation(const GatedActivationArgs& args) {
  for (int64_t t = 0; t < args.y.rows; ++t) {
    const float* both = args.gate_up.row<float>(t);
    for (int64_t f = 0; f < args.y.cols; ++f) {
      args.y.row<float>(t)[f] = gated(args.activation, both[f], both[args.y.cols + f]);
    }
  }
}

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

void ReferenceBackend::moe_ffn(const MoeFfnArgs& args) {
  const int64_t ffn_dim = args.down->desc.k;
  const auto k = static_cast<std::size_t>(args.top_k);
  std::vector<float> activated(static_cast<std::size_t>(ffn_dim));
  std::vector<std::size_t> ascending(k);
  std::vector<double> sum(static_cast<std::size_t>(args.y.cols));
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
      for (int64_t f = 0; f < ffn_dim; ++f) {
        const double gate = dot(*args.gate_up, expert, f, x) + bias(args.gate_up_bias, 2 * ffn_dim, f);
        const double up =
            dot(*args.gate_up, expert, ffn_dim + f, x) + bias(args.gate_up_bias, 2 * ffn_dim, ffn_dim + f);
        activated[static_cast<std::size_t>(f)] =
            gated(args.activation, static_cast<float>(gate), static_cast<float>(up));
      }
      const double weight = args.weights[static_cast<std::size_t>(t) * k + i];
      for (int64_t e = 0; e < args.y.cols; ++e) {
        sum[static_cast<std::size_t>(e)] +=
            weight * (dot(*args.down, expert, e, activated.data()) + bias(args.down_bias, args.y.cols, e));
      }
    }
    for (int64_t e = 0; e < args.y.cols; ++e)
      args.y.row<float>(t)[e] = static_cast<float>(sum[static_cast<std::size_t>(e)]);
  }
}

void ReferenceBackend::add(const AddArgs& args) {
  for (int64_t t = 0; t < args.residual.rows; ++t) {
    const double gate = args.gate.data != nullptr ? sigmoid(args.gate.row<float>(t)[0]) : 1.0;
    for (int64_t e = 0; e < args.residual.cols; ++e) {
      float& out = args.residual.row<float>(t)[e];
      out = static_cast<float>(out + gate * args.x.row<float>(t)[e]);
    }
  }
}

void ReferenceBackend::softcap(const SoftcapArgs& args) {
  for (int64_t r = 0; r < args.x.rows; ++r) {
    for (int64_t c = 0; c < args.x.cols; ++c) {
      float& x = args.x.row<float>(r)[c];
      x = static_cast<float>(args.cap * std::tanh(static_cast<double>(x) / args.cap));
    }
  }
}

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
