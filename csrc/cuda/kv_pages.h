// The KV cache as plain kernels see it, row by row. Its layout: layout.h.
#pragma once

#include "cuda/fl/gpu.h"
#include "cuda/layout.h"

namespace fastllm::cuda {

// Codes with scales, as KvSpec defines them.
template <class T>
constexpr bool kIsKvCode = std::is_same_v<T, int8_t> || std::is_same_v<T, fl::e4m3>;

// The numbers of one token and head; codes with their scales.
template <class T>
struct KvRow {
  T* x;
  fl::bf16* scales;  // one per `scale_dims` numbers
  int32_t scale_dims;

  __device__ float operator[](int32_t d) const {
    if constexpr (std::is_same_v<T, int8_t>) {
      return static_cast<float>(x[d]) * fl::to_float(scales[d / scale_dims]);
    } else if constexpr (kIsKvCode<T>) {
      return fl::to_float(x[d]) * fl::to_float(scales[d / scale_dims]);
    } else {
      return fl::to_float(x[d]);
    }
  }
};

// The KV cache of a layer as kernels see it. T: float, fl::bf16, fl::f16, int8_t or fl::e4m3.
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

}  // namespace fastllm::cuda
