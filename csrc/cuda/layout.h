// Where the bytes of KV pages lie on the device. (Weights: gemm/weight_tiles.h.)
//
// KV page: K part, then V part, each [kv head][slot in the page][dim], dims padded with zeros to a multiple of 16
// bytes: a (page, head) is one contiguous block. int8 and fp8: then the scales (bf16), of K [kv head][slot][group of
// dims], of V [kv head][slot].
#pragma once

#include "core/checked.h"
#include "cuda/fl/types.h"
#include "ops/ops.h"

namespace fastllm::cuda {

constexpr int64_t kPageSize = 16;

// Elements from one row to the next.
constexpr int64_t padded(int64_t size, DType dtype) { return round_up(size, 16 / size_of(dtype)); }
constexpr int64_t head_pitch(const KvSpec& spec) { return padded(spec.head_dim, spec.dtype); }
// Elements from the K part of a page to its V part.
constexpr int64_t kv_part_size(const KvSpec& spec) { return spec.num_kv_heads * kPageSize * head_pitch(spec); }
// Bytes from the start of a page to the scales of K, to those of V, and to the end.
constexpr int64_t k_scales_offset(const KvSpec& spec) { return 2 * kv_part_size(spec) * size_of(spec.dtype); }
constexpr int64_t v_scales_offset(const KvSpec& spec) {
  const int64_t groups = has_kv_scales(spec.dtype) ? ceil_div(spec.head_dim, kKvScaleDims) : 0;
  return k_scales_offset(spec) + spec.num_kv_heads * kPageSize * groups * size_of(DType::kBF16);
}
constexpr int64_t page_end(const KvSpec& spec) {
  const int64_t scales = has_kv_scales(spec.dtype) ? spec.num_kv_heads * kPageSize : 0;
  return v_scales_offset(spec) + scales * size_of(DType::kBF16);
}

// Calls f with a tag of the device's type of a float dtype.
template <class F>
decltype(auto) with_device_type(DType t, F&& f) {
  switch (t) {
    case DType::kF32:
      return f(float{});
    case DType::kBF16:
      return f(fl::bf16{});
    case DType::kF16:
      return f(fl::f16{});
    case DType::kI32:
    case DType::kI64:
    case DType::kU8:
    case DType::kI8:
    case DType::kE4M3:
      break;
  }
  fail(ErrorKind::kUnsupportedModel, "cuda: ", name_of(t), " is not there yet");
}
// The same for the types of a KV cache: floats, int8 and e4m3.
template <class F>
decltype(auto) with_kv_type(DType t, F&& f) {
  if (t == DType::kI8) return f(int8_t{});
  if (t == DType::kE4M3) return f(fl::e4m3{});
  return with_device_type(t, f);
}

}  // namespace fastllm::cuda
