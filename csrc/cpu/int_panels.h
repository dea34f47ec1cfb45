// Where the parts of integer panels lie (layout: kernels.h), for the kernels that read them.
#pragma once

#include "cpu/int_dot.h"
#include "cpu/linear_tile.h"

namespace fastllm::cpu::FASTLLM_ISA {

template <class Codes>
struct IntPanels {
  FASTLLM_INLINE explicit IntPanels(const LinearJob& of)
      : job(of),
        has_row_scales(of.format.scales == ScaleKind::kRow),
        num_groups((of.k + of.format.group - 1) / of.format.group),
        num_quads(of.format.group / 4),
        block_bytes(num_quads * Codes::kLineBytes + (has_row_scales ? 0 : 2 * kPanelRows)) {}

  const LinearJob& job;
  bool has_row_scales;
  int64_t num_groups;
  int64_t num_quads;    // of a group
  int64_t block_bytes;  // of a group: its codes, then its scales

  [[nodiscard]] FASTLLM_INLINE const std::byte* first_block(int64_t panel) const {
    return job.panels + panel * job.panel_bytes + (has_row_scales ? kRowScaleBytes : 0);
  }
  // Of the first group, or of whole rows; the next group's are kPanelRows further. nullptr: symmetric weights.
  [[nodiscard]] FASTLLM_INLINE const uint8_t* first_zeros(int64_t panel) const {
    return job.zeros == nullptr ? nullptr : job.zeros + panel * kPanelRows * (has_row_scales ? 1 : num_groups);
  }
  [[nodiscard]] FASTLLM_INLINE Vec group_scales(const std::byte* block, int parity) const {
    return load_scales(block + num_quads * Codes::kLineBytes + 32 * parity, job.format.scales);
  }
  // Writes the results of one row; with scales of whole rows they are applied here.
  FASTLLM_INLINE void put_scaled(int64_t row, int64_t half, Vec result) const {
    if (has_row_scales) {
      const std::byte* scales = job.panels + half / 2 * job.panel_bytes + 64 * (half % 2);
      result = mul(result, load(reinterpret_cast<const float*>(scales)));
    }
    put(job, row, half * kLanes, result);
  }
};

}  // namespace fastllm::cpu::FASTLLM_ISA
