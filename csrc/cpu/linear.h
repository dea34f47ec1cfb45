// How a product with a packed matrix is cut into tasks; shared by `linear` and the experts.
#pragma once

#include "cpu/cpu_backend.h"

namespace fastllm::cpu {

// Panels of one task: up to 8, fewer (a power of two) when there would not be enough tasks for the threads.
int64_t panels_per_task(int64_t num_panels, int64_t num_groups, int num_threads);

// The part of a job that belongs to the weights: panels [panel_begin, panel_end) of one expert.
LinearJob linear_job(const PackedWeight& weight, const PanelLayout& layout, int64_t expert, int64_t panel_begin,
                     int64_t panel_end);

}  // namespace fastllm::cpu
