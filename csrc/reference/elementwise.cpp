// Activations, the residual sum, the soft cap: one value at a time, in double.
#include <cmath>

#include "reference/reference_backend.h"

namespace fastllm::reference {

double sigmoid(double x) { return 1.0 / (1.0 + std::exp(-x)); }

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

void ReferenceBackend::gated_activation(const GatedActivationArgs& args) {
  for (int64_t t = 0; t < args.y.rows; ++t) {
    const float* both = args.gate_up.row<float>(t);
    for (int64_t f = 0; f < args.y.cols; ++f) {
      args.y.row<float>(t)[f] = gated(args.activation, both[f], both[args.y.cols + f]);
    }
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

}  // namespace fastllm::reference
