#include "ops/weights.h"

namespace fastllm {

WeightFormat parse_code_format(std::string_view name) {
  for (const WeightFormat f : {WeightFormat::kInt8, WeightFormat::kInt4, WeightFormat::kE4M3}) {
    if (name == name_of(f)) return f;
  }
  fail(ErrorKind::kInvalidRequest, "format is \"", name, "\"; int8, int4 and fp8 are known");
}

ActMode parse_act_mode(std::string_view name) {
  for (const ActMode m : {ActMode::kA8, ActMode::kA8R, ActMode::kA15, ActMode::kBF16, ActMode::kF32, ActMode::kE4M3}) {
    if (name == name_of(m)) return m;
  }
  fail(ErrorKind::kInvalidRequest, "act is \"", name, "\"; a8, a8r, a15, bf16, f32 and fp8 are known");
}

}  // namespace fastllm
