// y = x W^T + bias: packs the rows of x, then hands (group of rows, block of panels) tasks to the threads.
//
// K is never split and one task owns an output, so there is nothing to reduce between threads.
#include "cpu/linear.h"

#include <algorithm>

#include "core/checked.h"
#include "cpu/cpu_backend.h"

namespace fastllm::cpu {

int64_t panels_per_task(int64_t num_panels, int64_t num_groups, int num_threads) {
  constexpr int64_t kLargest = 8;  // 8 panels of K = 1024 in bf16 are half of a 1 MB L2
  int64_t panels = kLargest;
  while (panels > 1 && ceil_div(num_panels, panels) * num_groups < kTasksPerThread * num_threads) panels /= 2;
  return panels;
}

namespace {

const LinearEntry& entry_for(const WeightDesc& desc, const KernelTable& kernels) {
  if (!is_integer(desc.format)) return kernels.linear[static_cast<int>(elem_of(desc.format))];
  const int format = desc.format == WeightFormat::kInt4 ? 1 : 0;
  if (desc.act == ActMode::kBF16) return kernels.linear_dequant[format];
  if (desc.act == ActMode::kF32) return kernels.linear_dequant[2 + format];
  return kernels.linear_int[format];
}

}  // namespace

Matrix::Matrix(const PackedWeight& packed_weight, const KernelTable& kernels)
    : weight(packed_weight),
      layout(packed_weight.desc),
      entry(entry_for(packed_weight.desc, kernels)),
      row_bytes(entry.packed_row_bytes(packed_weight.desc.k, layout.format)) {}

LinearJob Matrix::job(int64_t expert, int64_t panel_begin, int64_t panel_end) const {
  const WeightDesc& desc = weight.desc;
  const std::byte* panels = weight.data + expert * layout.expert_bytes;
  LinearJob job;
  job.k = desc.k;
  job.format = layout.format;
  job.panels = panels + panel_begin * layout.panel_bytes;
  job.panel_bytes = layout.panel_bytes;
  job.num_panels = panel_end - panel_begin;
  job.num_cols = desc.n - panel_begin * kPanelRows;
  if (is_integer(desc.format) && desc.has_zeros) {
    job.zeros =
        reinterpret_cast<const uint8_t*>(panels + layout.zeros_offset) + panel_begin * desc.groups() * kPanelRows;
  }
  return job;
}

void CpuBackend::check_packed(const char* op, const Matrix& matrix, int64_t reserved_row_bytes) const {
  FASTLLM_CHECK(matrix.row_bytes <= reserved_row_bytes && scratch_.packed_rows > 0, op, ": K = ", matrix.weight.desc.k,
                " is more than reserve() planned for");
}

PackRowsJob Matrix::pack_job(const RowGroup& group, std::byte* packed) const {
  PackRowsJob job;
  job.num_rows = group.num_rows;
  job.k = weight.desc.k;
  job.format = layout.format;
  job.packed = packed + group.begin * row_bytes;
  return job;
}

void CpuBackend::pack_rows(const Matrix& matrix, const PackRows& rows, std::span<const RowGroup> groups) {
  const LinearEntry& entry = matrix.entry;
  const int64_t k = matrix.weight.desc.k;
  int64_t num_rows = 0, largest_group = 0;
  for (const RowGroup& group : groups) {
    num_rows += group.num_rows;
    largest_group = std::max(largest_group, group.num_rows);
  }
  const int64_t pieces = ceil_div(k, kPackColumns);
  const int64_t units_per_group = ceil_div(largest_group, entry.row_tile) * pieces;
  const int64_t num_units = static_cast<int64_t>(groups.size()) * units_per_group;
  const bool is_small = num_rows * k <= kNumbersPerTask;
  pool_.parallel_for(num_units, is_small ? num_units : 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const RowGroup& group = groups[static_cast<std::size_t>(unit / units_per_group)];
      const int64_t tile = unit % units_per_group / pieces;
      if (tile >= ceil_div(group.num_rows, entry.row_tile)) continue;
      PackRowsJob job = matrix.pack_job(group, scratch_.packed);
      job.k_begin = unit % pieces * kPackColumns;
      job.k_end = std::min(job.k_begin + kPackColumns, k);
      job.x = rows.x + (rows.row_ids != nullptr ? 0 : group.begin * rows.x_stride) + job.k_begin;
      job.x_stride = rows.x_stride;
      job.row_ids = rows.row_ids != nullptr ? rows.row_ids + group.begin : nullptr;
      entry.pack_rows(job, tile, tile + 1);
    }
  });
}

std::span<const RowGroup> CpuBackend::split_rows(int64_t num_rows) {
  const int64_t num_groups = ceil_div(num_rows, kGroupRows);
  for (int64_t g = 0; g < num_groups; ++g) {  // as even as possible: 100 rows are 50 + 50
    const int64_t begin = num_rows * g / num_groups;
    scratch_.groups[g] = {0, begin, num_rows * (g + 1) / num_groups - begin};
  }
  return {scratch_.groups, static_cast<std::size_t>(num_groups)};
}

void CpuBackend::multiply(const Matrix& matrix, const std::byte* packed, std::span<const RowGroup> groups,
                          const float* bias, const Mat& y, int64_t first_row) {
  // The groups of one block of panels follow each other, so that the block is read from memory once.
  const auto num_groups = static_cast<int64_t>(groups.size());
  const int64_t panels = panels_per_task(matrix.layout.num_panels, num_groups, num_threads());
  const int64_t num_blocks = ceil_div(matrix.layout.num_panels, panels);
  pool_.parallel_for(num_blocks * num_groups, 1, [&](int64_t unit, int64_t, int) {
    const RowGroup& group = groups[static_cast<std::size_t>(unit % num_groups)];
    const int64_t panel_begin = unit / num_groups * panels;
    const int64_t column = panel_begin * kPanelRows;
    LinearJob job = matrix.job(0, panel_begin, std::min(panel_begin + panels, matrix.layout.num_panels));
    job.packed = packed + group.begin * matrix.row_bytes;
    job.num_rows = group.num_rows;
    job.bias = bias != nullptr ? bias + column : nullptr;
    job.y = y.row<float>(first_row + group.begin) + column;
    job.y_stride = y.stride;
    matrix.entry.run(job);
  });
}

void CpuBackend::linear(const LinearArgs& args) {
  if (args.x.rows == 0) return;
  const Matrix matrix(*args.weight, kernels_);
  check_packed("linear", matrix, scratch_.packed_row_bytes);
  for (int64_t first = 0; first < args.x.rows; first += scratch_.packed_rows) {
    const std::span<const RowGroup> groups = split_rows(std::min(scratch_.packed_rows, args.x.rows - first));
    pack_rows(matrix, {args.x.row<float>(first), args.x.stride, nullptr}, groups);
    multiply(matrix, scratch_.packed, groups, args.bias, args.y, first);
  }
}

}  // namespace fastllm::cpu
