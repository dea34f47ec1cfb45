#include "core/dtype.h"

namespace fastllm {

DType parse_float_dtype(std::string_view name) {
  for (const DType t : {DType::kF32, DType::kBF16, DType::kF16}) {
    if (name == name_of(t)) return t;
  }
  fail(ErrorKind::kInvalidRequest, "dtype is \"", name, "\"; float32, bfloat16 and float16 are known");
}

DType parse_kv_dtype(std::string_view name) {
  for (const DType t : {DType::kF32, DType::kBF16, DType::kF16, DType::kI8, DType::kE4M3}) {
    if (name == name_of(t)) return t;
  }
  fail(ErrorKind::kInvalidRequest, "type of the KV cache is \"", name,
       "\"; float32, bfloat16, float16, int8 and fp8 are known");
}

}  // namespace fastllm
