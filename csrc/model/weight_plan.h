// How each matrix of a model is held: one type for all, but for those that are named.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "model/spec.h"
#include "ops/weights.h"

namespace fastllm {

// The part of a WeightDesc that is a choice; see there.
struct MatrixFormat {
  WeightFormat format = WeightFormat::kBF16;
  int64_t group = 0;
  DType scale_dtype = DType::kF16;
  bool has_zeros = false;
  ActMode act = ActMode::kA8R;
};

struct WeightPlan {
  WeightFormat others = WeightFormat::kBF16;  // of matrices that are not named; a float type
  std::map<std::string, MatrixFormat> named;  // by slot: "lm_head", "layers.0.qkv", ...
};

// A matrix slot of a model. `is_fixed`: always f32 (routers and the gate of a shared expert), whatever the plan says.
struct MatrixShape {
  std::string name;
  int64_t n = 0;
  int64_t k = 0;
  int64_t num_experts = 1;
  bool is_fixed = false;
};

// Throws kInvalidRequest naming slot and field, with what is possible: formats, groups, types of scales, a name that
// the model does not have or that is fixed.
WeightDesc desc_of(const WeightPlan& plan, const MatrixShape& shape);
void check(const WeightPlan& plan, const std::vector<MatrixShape>& shapes);

}  // namespace fastllm
