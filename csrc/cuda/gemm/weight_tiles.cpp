#include "cuda/gemm/weight_tiles.h"

#include <bit>

#include "core/checked.h"

namespace fastllm::cuda {

TileLayout::TileLayout(const WeightDesc& desc)
    : num_bands(ceil_div(desc.n, kBandRows)),
      num_chunks(ceil_div(desc.k, kChunkCols)),
      chunk_bytes(words_per_chunk(desc.format) * 512),
      num_groups(has_codes(desc.format) ? desc.groups() : 0),
      code_bytes(desc.format == WeightFormat::kF32 ? checked_mul(checked_mul(desc.n, desc.k, "weight"), 4, "weight")
                                                   : checked_mul(checked_mul(num_bands, num_chunks, "weight"),
                                                                 kStripsPerBand * chunk_bytes, "weight")),
      scale_bytes(checked_mul(num_bands * kBandRows, num_groups * size_of(desc.scale_dtype), "weight")),
      zero_bytes(desc.has_zeros ? num_bands * kBandRows * num_groups : 0),
      expert_bytes(round_up(checked_add(code_bytes, scale_bytes + zero_bytes, "weight"), 256)) {}

WeightView view_of(const PackedWeight& weight) {
  const TileLayout layout(weight.desc);
  WeightView view;
  view.data = reinterpret_cast<const unsigned char*>(weight.data);
  view.expert_bytes = layout.expert_bytes;
  view.scale_offset = layout.code_bytes;
  view.zero_offset = weight.desc.has_zeros ? layout.code_bytes + layout.scale_bytes : 0;
  view.n = narrow<int32_t>(weight.desc.n, "weight rows");
  view.k = narrow<int32_t>(weight.desc.k, "weight columns");
  view.num_chunks = narrow<int32_t>(layout.num_chunks, "weight columns");
  view.num_groups = narrow<int32_t>(layout.num_groups, "weight groups");
  view.group_shift = weight.desc.group > 0 ? std::countr_zero(static_cast<uint64_t>(weight.desc.group)) : 30;
  view.format = weight.desc.format;
  view.scale_dtype = weight.desc.scale_dtype;
  view.act = weight.desc.act;
  return view;
}

}  // namespace fastllm::cuda
