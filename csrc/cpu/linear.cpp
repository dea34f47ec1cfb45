// y = x W^T + bias: packs the rows of x, then hands (group of rows, block of panels) tasks to the threads.
//
// K is never split and one task owns an output, so there is nothing to reduce between threads.
#include "cpu/linear.h"

#include <algorithm>

#include "core/checked.h"
#include "cpu/cpu_backend.h"

namespace fastllm::cpu {

int64_t panels_per_task(int64_t num_panels, int64_t num_groups, int num_threads) {
  constexpr int64_t kLargest = 8;         // 8 panels of K = 1024 in bf16 are half of a 1 MB L2
  constexpr int64_t kTasksPerThread = 4;  // so that the last to finish is not far behind
  int64_t panels = kLargest;
  while (panels > 1 && ceil_div(num_panels, panels) * num_groups < kTasksPerThread * num_threads) panels /= 2;
  return panels;
}

LinearJob linear_job(const PackedWeight& weight, const PanelLayout& layout, int64_t expert, int64_t panel_begin,
                     int64_t panel_end) {
  LinearJob job;
  job.k = weight.desc.k;
  job.panels = weight.data + expert * layout.expert_bytes + panel_begin * layout.panel_bytes;
  job.panel_bytes = layout.panel_bytes;
  job.num_panels = panel_end - panel_begin;
  job.num_cols = weight.desc.n - panel_begin * kPanelRows;
  return job;
}

void CpuBackend::check_packed(const char* op, int64_t k) const {
  FASTLLM_CHECK(k <= scratch_.packed_k && scratch_.packed_rows > 0, op, ": K = ", k, " but reserve() planned for ",
                scratch_.packed_k);
}

void CpuBackend::pack_rows(const LinearEntry& entry, const PackRows& rows, std::span<const RowGroup> groups) {
  const int64_t padded_k = round_up(rows.k, 2);
  const int64_t tiles_per_group = ceil_div(kGroupRows, entry.row_tile);
  const int64_t num_units = static_cast<int64_t>(groups.size()) * tiles_per_group;
  const int64_t last_row = groups.empty() ? 0 : groups.back().begin + groups.back().num_rows;
  const bool is_small = last_row * rows.k <= kNumbersPerTask;
  pool_.parallel_for(num_units, is_small ? num_units : 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const RowGroup& group = groups[static_cast<std::size_t>(unit / tiles_per_group)];
      const int64_t tile = unit % tiles_per_group;
      if (tile >= ceil_div(group.num_rows, entry.row_tile)) continue;
      PackRowsJob job;
      job.x = rows.row_ids != nullptr ? rows.x : rows.x + group.begin * rows.x_stride;
      job.x_stride = rows.x_stride;
      job.row_ids = rows.row_ids != nullptr ? rows.row_ids + group.begin : nullptr;
      job.num_rows = group.num_rows;
      job.k = rows.k;
      job.packed = scratch_.packed + group.begin * padded_k * entry.activation_bytes;
      entry.pack_rows(job, tile, tile + 1);
    }
  });
}

void CpuBackend::linear(const LinearArgs& args) {
  const PackedWeight& weight = *args.weight;
  const PanelLayout layout(weight.desc);
  const LinearEntry& entry = kernels_.linear[static_cast<int>(layout.elem)];
  if (args.x.rows == 0) return;
  check_packed("linear", weight.desc.k);

  const int64_t rows_per_pass = std::min(scratch_.packed_rows, (scratch_.max_groups - 1) * kGroupRows + 1);
  for (int64_t first = 0; first < args.x.rows; first += rows_per_pass) {
    const int64_t num_rows = std::min(rows_per_pass, args.x.rows - first);
    const int64_t num_groups = ceil_div(num_rows, kGroupRows);
    for (int64_t g = 0; g < num_groups; ++g) {  // as even as possible: 100 rows are 50 + 50
      const int64_t begin = num_rows * g / num_groups;
      scratch_.groups[g] = {0, begin, num_rows * (g + 1) / num_groups - begin};
    }
    const std::span<const RowGroup> groups(scratch_.groups, static_cast<std::size_t>(num_groups));
    pack_rows(entry, {args.x.row<float>(first), args.x.stride, nullptr, weight.desc.k}, groups);

    // The groups of one block of panels follow each other, so that the block is read from memory once.
    const int64_t panels = panels_per_task(layout.num_panels, num_groups, num_threads());
    const int64_t num_blocks = ceil_div(layout.num_panels, panels);
    pool_.parallel_for(num_blocks * num_groups, 1, [&](int64_t unit, int64_t, int) {
      const RowGroup& group = groups[static_cast<std::size_t>(unit % num_groups)];
      const int64_t panel_begin = unit / num_groups * panels;
      const int64_t column = panel_begin * kPanelRows;
      LinearJob job = linear_job(weight, layout, 0, panel_begin, std::min(panel_begin + panels, layout.num_panels));
      job.packed = scratch_.packed + group.begin * layout.padded_k * entry.activation_bytes;
      job.num_rows = group.num_rows;
      job.bias = args.bias != nullptr ? args.bias + column : nullptr;
      job.y = args.y.row<float>(first + group.begin) + column;
      job.y_stride = args.y.stride;
      entry.run(job);
    });
  }
}

}  // namespace fastllm::cpu
