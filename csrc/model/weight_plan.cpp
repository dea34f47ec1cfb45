#include "model/weight_plan.h"

#include <algorithm>

#include "core/error.h"

namespace fastllm {
namespace {

void check_codes(const MatrixShape& shape, const MatrixFormat& f) {
  const char* format = name_of(f.format);
  if (f.group != 0 && f.group != 32 && f.group != 64 && f.group != 128) {
    fail(ErrorKind::kInvalidRequest, shape.name, ": ", format, " with groups of ", f.group,
         " is not possible; groups are 32, 64 or 128 columns, or whole rows (0)");
  }
  if (f.group != 0 && shape.k % f.group != 0) {
    fail(ErrorKind::kInvalidRequest, shape.name, ": groups of ", f.group, " do not divide its ", shape.k, " columns");
  }
  const bool is_fp8 = f.format == WeightFormat::kE4M3;
  if (is_fp8 && (f.has_zeros || (f.act != ActMode::kBF16 && f.act != ActMode::kE4M3))) {
    fail(ErrorKind::kInvalidRequest, shape.name, ": fp8 has no zeros, and takes activations in bf16 or fp8");
  }
  if (!is_fp8 && f.act == ActMode::kE4M3) {
    fail(ErrorKind::kInvalidRequest, shape.name, ": activations in fp8 are for weights of fp8, not ", format);
  }
  const bool wants_float = f.group == 0 || is_fp8;
  if (wants_float ? f.scale_dtype != DType::kF32 : f.scale_dtype != DType::kF16 && f.scale_dtype != DType::kBF16) {
    fail(
        ErrorKind::kInvalidRequest, shape.name, ": scales of ", format, " with ",
        wants_float ? (is_fp8 ? "any groups are float32" : "whole rows are float32") : "groups are float16 or bfloat16",
        ", not ", name_of(f.scale_dtype));
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
  if (!has_codes(f.format)) return desc;
  check_codes(shape, f);
  desc.group = f.group;
  desc.scale_dtype = f.scale_dtype;
  desc.has_zeros = f.has_zeros;
  desc.act = f.act;
  return desc;
}

void check(const WeightPlan& plan, const std::vector<MatrixShape>& shapes) {
  if (has_codes(plan.others)) fail(ErrorKind::kInternal, "weights with codes need a name each");
  for (const auto& [name, format] : plan.named) {
    const auto it = std::ranges::find(shapes, name, &MatrixShape::name);
    if (it == shapes.end()) fail(ErrorKind::kInvalidRequest, name, ": the model has no such matrix");
    if (it->is_fixed) fail(ErrorKind::kInvalidRequest, name, ": is always float32");
    desc_of(plan, *it);
  }
}

}  // namespace fastllm
