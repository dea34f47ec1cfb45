// Where bytes lie: packed weights, KV pages, the embedding table.
#include <cstring>

#include "core/checked.h"
#include "reference/reference_backend.h"

namespace fastllm {

std::unique_ptr<Backend> make_reference_backend() { return std::make_unique<reference::ReferenceBackend>(); }

namespace reference {
DType dtype_of(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return DType::kF32;
    case WeightFormat::kBF16:
      return DType::kBF16;
    case WeightFormat::kF16:
      return DType::kF16;
    case WeightFormat::kInt8:
    case WeightFormat::kInt4:
    case WeightFormat::kE4M3:
      break;
  }
  fail(ErrorKind::kInternal, "unknown weight format");
}

int64_t ReferenceBackend::packed_bytes(const WeightDesc& desc) const {
  if (has_codes(desc.format)) {
    return checked_mul(int_matrix_bytes(desc), desc.num_experts, "weight");
  }
  const int64_t elements = checked_mul(checked_mul(desc.n, desc.k, "weight"), desc.num_experts, "weight");
  return checked_mul(elements, size_of(dtype_of(desc.format)), "weight");
}

void ReferenceBackend::pack(const PackedWeight& to, const WeightSlice& slice) {
  with_float_dtype(dtype_of(to.desc.format), [&]<class To>(To) {
    with_float_dtype(slice.dtype, [&]<class From>(From) {
      for (int64_t i = 0; i < slice.num_rows; ++i) {
        const From* from = static_cast<const From*>(slice.data) + i * slice.row_stride;
        To* row = reinterpret_cast<To*>(to.data) + (slice.expert * to.desc.n + slice.row_begin + i) * to.desc.k;
        for (int64_t k = 0; k < to.desc.k; ++k) row[k] = from_float<To>(to_float(from[k * slice.col_stride]));
      }
    });
  });
}

float weight_at(const PackedWeight& weight, int64_t expert, int64_t n, int64_t k) {
  if (has_codes(weight.desc.format)) {
    const IntMatrix m = int_matrix(weight, expert);
    return code_value(m, weight.desc, n, k) * m.scales[scale_index(weight.desc, n, k)];
  }
  const int64_t at = (expert * weight.desc.n + n) * weight.desc.k + k;
  return with_float_dtype(dtype_of(weight.desc.format),
                          [&]<class T>(T) { return to_float(reinterpret_cast<const T*>(weight.data)[at]); });
}

int64_t ReferenceBackend::kv_page_bytes(const KvSpec& spec) const {
  const int64_t rows = spec.num_kv_heads * kPageSize;
  const int64_t scales = has_kv_scales(spec.dtype) ? rows * (ceil_div(spec.head_dim, kKvScaleDims) + 1) : 0;
  return 2 * rows * spec.head_dim * size_of(spec.dtype) + scales * size_of(DType::kBF16);
}

int64_t ReferenceBackend::scratch_bytes(const OpLimits&) const { return 0; }
void ReferenceBackend::reserve(const OpLimits&) {}

void ReferenceBackend::embed(const EmbedArgs& args) {
  for (int64_t t = 0; t < args.num_tokens; ++t) {
    float* out = args.out.row<float>(t);
    for (int64_t e = 0; e < args.out.cols; ++e) out[e] = weight_at(*args.table, 0, args.ids[t], e) * args.scale;
  }
}

void ReferenceBackend::copy_pages(const CopyPagesArgs& args) {
  const auto bytes = static_cast<std::size_t>(args.kv.page_bytes);
  for (std::size_t i = 0; i < args.from.size(); ++i) {
    std::memcpy(args.kv.data + args.to[i] * args.kv.page_bytes, args.kv.data + args.from[i] * args.kv.page_bytes,
                bytes);
  }
}

}  // namespace reference
}  // namespace fastllm
