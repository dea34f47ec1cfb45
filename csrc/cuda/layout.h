// Where bytes of weights and KV pages lie on the device.
//
// Float weights: [expert][n][pitch], rows padded with zeros to a multiple of 16 bytes, so that every row can be read in
// 16-byte pieces.
// KV page: K part, then V part, each [kv head][slot in the page][dim], dims padded with zeros to a multiple of 16
// bytes: a (page, head) is one contiguous block.
#pragma once

#include "core/checked.h"
#include "cuda/fl/types.h"
#include "ops/ops.h"

namespace fastllm::cuda {

constexpr int64_t kPageSize = 16;

constexpr DType dtype_of(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return DType::kF32;
    case WeightFormat::kBF16:
      return DType::kBF16;
    case WeightFormat::kF16:
      return DType::kF16;
    case WeightFormat::kInt8:
    case WeightFormat::kInt4:
      break;
  }
  fail(ErrorKind::kInternal, "cuda: ", name_of(format), " is not a float format");
}

// Elements from one row to the next.
constexpr int64_t padded(int64_t size, DType dtype) { return round_up(size, 16 / size_of(dtype)); }
constexpr int64_t row_pitch(const WeightDesc& desc) { return padded(desc.k, dtype_of(desc.format)); }
constexpr int64_t head_pitch(const KvSpec& spec) { return padded(spec.head_dim, spec.dtype); }
// Elements from the K part of a page to its V part.
constexpr int64_t kv_part_size(const KvSpec& spec) { return spec.num_kv_heads * kPageSize * head_pitch(spec); }

// The KV cache of a layer as kernels see it: element (page, is_v, head, slot, d).
template <class T>
struct KvPages {
  T* data;
  int64_t page_stride;  // elements
  int64_t part_size;
  int32_t pitch;

  __host__ __device__ T* row(int64_t page, bool is_v, int64_t head, int64_t slot) const {
    return data + page * page_stride + (is_v ? part_size : 0) + (head * kPageSize + slot) * pitch;
  }
};
template <class T>
KvPages<T> kv_pages(const KvLayer& kv) {
  return {reinterpret_cast<T*>(kv.data), kv.page_bytes / static_cast<int64_t>(sizeof(T)), kv_part_size(kv.spec),
          static_cast<int32_t>(head_pitch(kv.spec))};
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
      break;
  }
  fail(ErrorKind::kInternal, "cuda: ", name_of(t), " is not a float type");
}

}  // namespace fastllm::cuda
