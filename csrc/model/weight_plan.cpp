#include "model/weight_plan.h"

#include <algorithm>

#include "core/error.h"

namespace fastllm {
namespace {

void check_integer(const MatrixShape& shape, const MatrixFormat& f) {
  const char* format = name_of(f.format);
  if (f.group != 0 && f.group != 32 && f.group != 64 && f.group != 128) {
    fail(ErrorKind::kInvalidRequest, shape.name, ": ", format, " with groups of ", f.group,
         " is not possible; groups are 32, 64 or 128 columns, or whole rows (0)");
  }
  if (f.group != 0 && shape.k % f.group != 0) {
    fail(ErrorKind::kInvalidRequest, shape.name, ": groups of ", f.group, " do not divide its ", shape.k, " columns");
  }
  if (f.group == 0 ? f.scale_dtype != DType::kF32 : f.scale_dtype != DType::kF16 && f.scale_dtype != DType::kBF16) {
    fail(ErrorKind::kInvalidRequest, shape.name, ": scales of ", format, " with ",
         f.group == 0 ? "whole rows are float32" : "groups are float16 or bfloat16", ", not ", name_of(f.scale_dtype));
  }
}

}  // namespace

WeightDesc desc_of(const WeightPlan& plan, const MatrixShape& shape) {
  WeightDesc desc;
  desc.n = shape.n;
  desc.k = shape.k;
  desc.num_experts = shape.num_experts;
  desc.format = shape.is_fixed ? WeightFormat::kF32 : plan.others;
  const auto it = plan.named.find(shape.name);
  if (it == plan.named.end()) return desc;
  const MatrixFormat& f = it->second;
  desc.format = f.format;
  if (!is_integer(f.format)) return desc;
  check_integer(shape, f);
  desc.group = f.group;
  desc.scale_dtype = f.scale_dtype;
  desc.has_zeros = f.has_zeros;
  desc.act = f.act;
  return desc;
}

void check(const WeightPlan& plan, const std::vector<MatrixShape>& shapes) {
  if (is_integer(plan.others)) fail(ErrorKind::kInternal, "integer weights need a name each");
  for (const auto& [name, format] : plan.named) {
    const auto it = std::ranges::find(shapes, name, &MatrixShape::name);
    if (it == shapes.end()) fail(ErrorKind::kInvalidRequest, name, ": the model has no such matrix");
    if (it->is_fixed) fail(ErrorKind::kInvalidRequest, name, ": is always float32");
    desc_of(plan, *it);
  }
}

}  // namespace fastllm
