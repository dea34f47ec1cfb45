#include "model/weight_plan.h"

#include <algorithm>
#include <array>

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

template <class Enum, std::size_t N>
Enum parse(const char* what, std::string_view name, const std::array<Enum, N>& known) {
  std::string names;
  for (const Enum e : known) {
    if (name == name_of(e)) return e;
    names += (names.empty() ? "" : ", ") + std::string(name_of(e));
  }
  fail(ErrorKind::kInvalidRequest, what, " \"", std::string(name), "\" is not known; use one of ", names);
}

}  // namespace

WeightFormat parse_weight_format(std::string_view name) {
  using enum WeightFormat;
  return parse("weight format", name, std::array{kF32, kBF16, kF16, kInt8, kInt4});
}

ActMode parse_act_mode(std::string_view name) {
  using enum ActMode;
  return parse("activation mode", name, std::array{kA8, kA8R, kA15, kBF16, kF32});
}

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
