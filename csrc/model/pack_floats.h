// Floats into a packed weight of any format. Integer weights round them to nearest (ops/quantize_rows.h), those of 4
// bits with clip search.
#pragma once

#include "ops/ops.h"

namespace fastllm {

// Slices of one weight may be packed concurrently if their rows are disjoint. Throws kCheckpoint where quantize_rows()
// does.
void pack_floats(const PackedWeight& to, const WeightSlice& slice, Backend& backend);

}  // namespace fastllm
