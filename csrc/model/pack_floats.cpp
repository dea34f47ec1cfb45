#include "model/pack_floats.h"

#include <algorithm>
#include <vector>

#include "ops/quantize_rows.h"

namespace fastllm {
namespace {

constexpr int64_t kRowsAtOnce = 64;  // backends pack such runs together
constexpr int64_t kFloatsAtOnce = 1 << 17;

// So many rows at a time that they stay in the second-level cache.
void quantize_and_pack(const PackedWeight& to, const WeightSlice& slice, Backend& backend) {
  const WeightDesc& desc = to.desc;
  const int64_t rows_at_once = std::max<int64_t>(kRowsAtOnce, kFloatsAtOnce / desc.k / kRowsAtOnce * kRowsAtOnce);
  // Among 8-bit codes a clipped range is nearer in whole rows of thousands of columns alone: of normal numbers never
  // in 4096, by 5 % of the error in 8192. The search takes nine times as long.
  const bool clip_search = desc.format == WeightFormat::kInt4;
  const QuantizeSpec spec{desc.format, desc.group, desc.scale_dtype, desc.has_zeros, clip_search};
  const auto size = [&](int64_t per_row) { return static_cast<std::size_t>(rows_at_once * per_row); };
  std::vector<float> values(size(desc.k));
  std::vector<uint8_t> codes(size(desc.k));
  std::vector<float> scales(size(desc.groups()));
  std::vector<uint8_t> zeros(desc.has_zeros ? scales.size() : 0);
  for (int64_t i = 0; i < slice.num_rows;) {
    const int64_t row = slice.row_begin + i;
    const int64_t count = std::min(rows_at_once - row % kRowsAtOnce, slice.num_rows - i);
    with_float_dtype(slice.dtype, [&]<class From>(From) {
      for (int64_t r = 0; r < count; ++r) {
        const From* from = static_cast<const From*>(slice.data) + (i + r) * slice.row_stride;
        float* value = values.data() + r * desc.k;
        for (int64_t k = 0; k < desc.k; ++k) value[k] = to_float(from[k * slice.col_stride]);
      }
    });
    uint8_t* zero = desc.has_zeros ? zeros.data() : nullptr;
    quantize_rows(spec, values.data(), count, desc.k, {codes.data(), scales.data(), zero});
    backend.pack_codes(to, {codes.data(), scales.data(), zero, row, count, slice.expert});
    i += count;
  }
}

}  // namespace

void pack_floats(const PackedWeight& to, const WeightSlice& slice, Backend& backend) {
  if (is_integer(to.desc.format)) return quantize_and_pack(to, slice, backend);
  backend.pack(to, slice);
}

}  // namespace fastllm
