// Gated feed-forward layers, dense and of experts: y = Wdown act(Wgate x, Wup x).
//
// A task multiplies its rows with up to 128 columns of gates and as many of ups, and packs the activated result at
// once, as the second product reads it: neither leaves the second cache. What is computed, and in what order, is the
// same as in linear(), gated_activation(), linear(), to the last bit.
#include <algorithm>

#include "core/checked.h"
#include "cpu/cpu_backend.h"
#include "cpu/linear.h"

namespace fastllm::cpu {

void CpuBackend::multiply_gated(const Matrix& gate_up, const float* bias, const ActivationSpec& activation,
                                const Matrix& down, std::span<const RowGroup> groups) {
  const int64_t ffn_dim = down.weight.desc.k;
  const auto num_groups = static_cast<int64_t>(groups.size());
  // Whole groups of activations, and whole panels of gates.
  const int64_t smallest = std::max(down.layout.format.group, kPanelRows);
  int64_t columns = kFfnColumns;
  while (columns > smallest && ceil_div(ffn_dim, columns) * num_groups < kTasksPerThread * num_threads()) columns /= 2;
  const int64_t num_blocks = ceil_div(ffn_dim, columns);
  const GatedKind kind = gated_kind(activation.kind);
  // Units that read the same weights follow each other.
  const bool is_one_matrix = groups.front().expert == groups.back().expert;

  pool_.parallel_for(num_groups * num_blocks, 1, [&](int64_t unit, int64_t, int thread_idx) {
    const RowGroup& group = groups[static_cast<std::size_t>(is_one_matrix ? unit % num_groups : unit / num_blocks)];
    const int64_t begin = (is_one_matrix ? unit / num_groups : unit % num_blocks) * columns;
    const int64_t end = std::min(begin + columns, ffn_dim);
    const Scratch::PerThread& scratch = scratch_.threads[static_cast<std::size_t>(thread_idx)];
    // Returns where column `first` is. Ups begin where gates end, which may be within a panel.
    const auto multiply_columns = [&](int64_t first, int64_t last, float* y) {
      const int64_t panel = first / kPanelRows;
      const int64_t column = panel * kPanelRows;
      LinearJob job = gate_up.job(group.expert, panel, ceil_div(last, kPanelRows));
      job.packed = scratch_.packed + group.begin * gate_up.row_bytes;
      job.num_rows = group.num_rows;
      job.bias = bias != nullptr ? bias + group.expert * 2 * ffn_dim + column : nullptr;
      job.y = y;
      job.y_stride = kFfnStride;
      gate_up.entry.run(job);
      return y + (first - column);
    };
    const float* gate = multiply_columns(begin, end, scratch.gate);
    const float* up = multiply_columns(ffn_dim + begin, ffn_dim + end, scratch.up);
    for (int64_t m = 0; m < group.num_rows; ++m) {
      kernels_.elementwise->gated({gate + m * kFfnStride, up + m * kFfnStride, end - begin, kind, activation.alpha,
                                   activation.limit, scratch.gate + m * kFfnStride});
    }
    PackRowsJob job = down.pack_job(group, scratch_.packed_ffn);
    job.x = scratch.gate;
    job.x_stride = kFfnStride;
    job.k_begin = begin;
    job.k_end = end;
    down.entry.pack_rows(job, 0, ceil_div(group.num_rows, down.entry.row_tile));
  });
}

void CpuBackend::dense_ffn(const DenseFfnArgs& args) {
  if (args.x.rows == 0) return;
  const Matrix gate_up(*args.gate_up, kernels_);
  const Matrix down(*args.down, kernels_);
  check_packed("dense_ffn", gate_up, scratch_.packed_row_bytes);
  check_packed("dense_ffn", down, scratch_.packed_ffn_row_bytes);
  for (int64_t first = 0; first < args.x.rows; first += scratch_.packed_rows) {
    const std::span<const RowGroup> groups = split_rows(std::min(scratch_.packed_rows, args.x.rows - first));
    pack_rows(gate_up, {args.x.row<float>(first), args.x.stride, nullptr}, groups);
    multiply_gated(gate_up, nullptr, args.activation, down, groups);
    multiply(down, scratch_.packed_ffn, groups, nullptr, args.y, first);
  }
}

}  // namespace fastllm::cpu
