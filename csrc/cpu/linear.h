// What a product with a packed matrix needs, and how it is cut into tasks; shared by `linear` and the experts.
#pragma once

#include "cpu/cpu_backend.h"

namespace fastllm::cpu {

constexpr int64_t kTasksPerThread = 4;  // so that the last to finish is not far behind

// Panels of one task: up to 8, fewer (a power of two) when there would not be enough tasks for the threads.
int64_t panels_per_task(int64_t num_panels, int64_t num_groups, int num_threads);

// A packed weight, where its parts lie, and the kernels that multiply with it.
struct Matrix {
  Matrix(const PackedWeight& packed_weight, const KernelTable& kernels);

  const PackedWeight& weight;
  PanelLayout layout;
  const LinearEntry& entry;
  int64_t row_bytes;  // of a row of activations as the entry's kernels read it

  // The part of a job that belongs to the format and the group; `packed` is where those of all groups go.
  [[nodiscard]] PackRowsJob pack_job(const RowGroup& group, std::byte* packed) const;
  // The part of a job that belongs to the weights: panels [panel_begin, panel_end) of one expert.
  [[nodiscard]] LinearJob job(int64_t expert, int64_t panel_begin, int64_t panel_end) const;
};

}  // namespace fastllm::cpu
