// Norms, rotary tables, gates and sums: rows are shared out between the threads, each row is one kernel call.
#include <cmath>

#include "core/checked.h"
#include "cpu/cpu_backend.h"

namespace fastllm::cpu {

void CpuBackend::rms_norm(const RmsNormArgs& args) {
  const bool has_residual = args.residual.data != nullptr;
  const auto norm_row = [&](int64_t i) {
    const int64_t from = args.row_ids != nullptr ? args.row_ids[i] : i;
    for (int64_t begin = 0; begin < args.x.cols; begin += args.group) {
      NormRow row;
      row.x = args.x.row<float>(from) + begin;
      row.add = has_residual ? args.residual.row<float>(from) + begin : nullptr;
      row.sum = has_residual && args.row_ids == nullptr ? args.residual.row<float>(from) + begin : nullptr;
      row.weight = args.weight;
      row.weight_offset = args.weight_offset;
      row.eps = args.eps;
      row.size = args.group;
      row.y = args.y.row<float>(i) + begin;
      kernels_.elementwise->rms_norm(row);
    }
  };
  pool_.parallel_for(args.y.rows, rows_per_task(args.x.cols), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) norm_row(i);
  });
}

void CpuBackend::rope_table(const RopeTableArgs& args) {
  // In double: at position 100000 the angle of a float has 1e-2 of error left if its sine is not taken exactly. The
  // angle itself is rounded to float as every public implementation does.
  pool_.parallel_for(args.num_tokens, rows_per_task(32 * args.num_freqs), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin * args.num_freqs; i < end * args.num_freqs; ++i) {
      const float position = static_cast<float>(args.positions[i / args.num_freqs]);
      const double angle = position * args.inv_freq[i % args.num_freqs];
      args.cos[i] = static_cast<float>(std::cos(angle)) * args.scale;
      args.sin[i] = static_cast<float>(std::sin(angle)) * args.scale;
    }
  });
}

GatedKind gated_kind(Activation activation) {
  switch (activation) {
    case Activation::kSilu:
      return GatedKind::kSilu;
    case Activation::kGeluTanh:
      return GatedKind::kGeluTanh;
    case Activation::kClampedSwiglu:
      return GatedKind::kClampedSwiglu;
  }
  fail(ErrorKind::kInternal, "cpu: unknown activation");
}

void CpuBackend::gated_activation(const GatedActivationArgs& args) {
  const GatedKind kind = gated_kind(args.activation.kind);
  // Pieces of a row, so that one long row is shared too.
  constexpr int64_t kPiece = 1024;
  const int64_t pieces = ceil_div(args.y.cols, kPiece);
  pool_.parallel_for(args.y.rows * pieces, 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t t = unit / pieces;
      const int64_t first = unit % pieces * kPiece;
      const float* gate = args.gate_up.row<float>(t) + first;
      kernels_.elementwise->gated({gate, gate + args.y.cols, std::min(kPiece, args.y.cols - first), kind,
                                   args.activation.alpha, args.activation.limit, args.y.row<float>(t) + first});
    }
  });
}

void CpuBackend::add(const AddArgs& args) {
  const ElementwiseKernels& kernels = *kernels_.elementwise;
  pool_.parallel_for(args.residual.rows, rows_per_task(args.residual.cols), [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      float* residual = args.residual.row<float>(t);
      const float* x = args.x.row<float>(t);
      if (args.gate.data != nullptr) {
        kernels.add_gated(residual, x, args.gate.row<float>(t)[0], args.residual.cols);
      } else {
        kernels.add(residual, x, args.residual.cols);
      }
    }
  });
}

void CpuBackend::softcap(const SoftcapArgs& args) {
  pool_.parallel_for(args.x.rows, rows_per_task(args.x.cols), [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) kernels_.elementwise->softcap(args.x.row<float>(r), args.cap, args.x.cols);
  });
}

}  // namespace fastllm::cpu
