// Where the bytes of KV pages lie on the device. (Weights: gemm/weight_tiles.h.)
//
// KV page: K part, then V part, each [kv head][slot in the page][dim], dims padded with zeros to a multiple of 16
// bytes: a (page, head) is one contiguous block. int8: then the scales (bf16), of K [kv head][slot][group of dims], of
// V [kv head][slot].
#pragma once

#include "core/checked.h"
#include "cuda/fl/gpu.h"
#include "ops/ops.h"

namespace fastllm::cuda {

constexpr int64_t kPageSize = 16;

// Elements from one row to the next.
constexpr int64_t padded(int64_t size, DType dtype) { return round_up(size, 16 / size_of(dtype)); }
constexpr int64_t head_pitch(const KvSpec& spec) { return padded(spec.head_dim, spec.dtype); }
// Elements from the K part of a page to its V part.
constexpr int64_t kv_part_size(const KvSpec& spec) { return spec.num_kv_heads * kPageSize * head_pitch(spec); }
// Bytes from the start of a page to the scales of K, to those of V, and to the end. Only int8 has scales.
constexpr int64_t k_scales_offset(const KvSpec& spec) { return 2 * kv_part_size(spec) * size_of(spec.dtype); }
constexpr int64_t v_scales_offset(const KvSpec& spec) {
  const int64_t groups = spec.dtype == DType::kI8 ? ceil_div(spec.head_dim, kKvScaleDims) : 0;
  return k_scales_offset(spec) + spec.num_kv_heads * kPageSize * groups * size_of(DType::kBF16);
}
constexpr int64_t page_end(const KvSpec& spec) {
  const int64_t scales = spec.dtype == DType::kI8 ? spec.num_kv_heads * kPageSize : 0;
  return v_scales_offset(spec) + scales * size_of(DType::kBF16);
}

// The numbers of one token and head; those of int8 with their scales.
template <class T>
struct KvRow {
  T* x;
  fl::bf16* scales;  // one per `scale_dims` numbers
  int32_t scale_dims;

  __device__ float operator[](int32_t d) const {
    if constexpr (std::is_same_v<T, int8_t>) {
      return static_cast<float>(x[d]) * fl::to_float(scales[d / scale_dims]);
    } else {
      return fl::to_float(x[d]);
    }
  }
};

// The KV cache of a layer as kernels see it. T: float, fl::bf16, fl::f16 or int8_t.
template <class T>
struct KvPages {
  std::byte* data;
  int64_t page_bytes;
  int64_t part_size;
  int64_t k_scales, v_scales;  // bytes
  int32_t pitch;
  int32_t scale_groups;  // of a row of K

  __device__ KvRow<T> row(int64_t page, bool is_v, int64_t head, int64_t slot) const {
    std::byte* base = data + page * page_bytes;
    const int64_t i = head * kPageSize + slot;
    T* x = reinterpret_cast<T*>(base) + (is_v ? part_size : 0) + i * pitch;
    auto* scales = reinterpret_cast<fl::bf16*>(base + (is_v ? v_scales : k_scales)) + i * (is_v ? 1 : scale_groups);
    return {x, scales, is_v ? pitch : static_cast<int32_t>(kKvScaleDims)};
  }
};
template <class T>
KvPages<T> kv_pages(const KvLayer& kv) {
  return {kv.data,
          kv.page_bytes,
          kv_part_size(kv.spec),
          k_scales_offset(kv.spec),
          v_scales_offset(kv.spec),
          static_cast<int32_t>(head_pitch(kv.spec)),
          static_cast<int32_t>(ceil_div(kv.spec.head_dim, kKvScaleDims))};
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
      break;
  }
  fail(ErrorKind::kUnsupportedModel, "cuda: ", name_of(t), " is not there yet");
}
// The same for the types of a KV cache: floats and int8.
template <class F>
decltype(auto) with_kv_type(DType t, F&& f) {
  if (t == DType::kI8) return f(int8_t{});
  return with_device_type(t, f);
}

}  // namespace fastllm::cuda
