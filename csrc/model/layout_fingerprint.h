// A number for the bytes that a backend makes of the weights of a model: where each slot lies, how each format is laid
// out, how floats are rounded to it. Found by packing small matrices and looking, so that nobody who changes one of
// them has to think of a version. Two processes with the same number may use each other's packed weights.
#pragma once

#include <cstdint>

#include "model/spec.h"
#include "model/weight_plan.h"
#include "ops/ops.h"

namespace fastllm {

uint64_t layout_fingerprint(const ModelSpec& spec, const WeightPlan& plan, Backend& backend);

}  // namespace fastllm
