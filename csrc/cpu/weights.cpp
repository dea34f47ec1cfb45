// Where bytes lie: panels of weights, and the embedding read back from its panels.
#include <algorithm>
#include <cstring>
#include <type_traits>

#include "core/checked.h"
#include "cpu/codes.h"
#include "cpu/cpu_backend.h"

namespace fastllm::cpu {

Elem elem_of(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return Elem::kF32;
    case WeightFormat::kBF16:
      return Elem::kBF16;
    case WeightFormat::kF16:
      return Elem::kF16;
    case WeightFormat::kInt8:
    case WeightFormat::kInt4:
      break;
    case WeightFormat::kE4M3:
      fail(ErrorKind::kUnsupportedModel, "cpu: packed fp8 weights are for CUDA; use bfloat16 or int8");
  }
  fail(ErrorKind::kInternal, "cpu: unknown weight format");
}

PanelLayout::PanelLayout(const WeightDesc& desc) : num_panels(ceil_div(desc.n, kPanelRows)) {
  if (is_integer(desc.format)) {
    const bool has_row_scales = desc.group == 0;
    format.group = desc.act_group();
    format.scales = has_row_scales                    ? ScaleKind::kRow
                    : desc.scale_dtype == DType::kF16 ? ScaleKind::kF16
                                                      : ScaleKind::kBF16;
    format.planes = desc.act == ActMode::kA8R   ? Planes::kResidual
                    : desc.act == ActMode::kA15 ? Planes::kTwo
                                                : Planes::kOne;
    format.zero = desc.has_zeros ? 0 : desc.symmetric_zero();
    block_bytes = format.group * (desc.format == WeightFormat::kInt4 ? kPanelRows / 2 : kPanelRows) +
                  (has_row_scales ? 0 : 2 * kPanelRows);
    panel_bytes = checked_add(checked_mul(ceil_div(desc.k, format.group), block_bytes, "weight"),
                              has_row_scales ? kRowScaleBytes : 0, "weight");
  } else {
    panel_bytes = checked_mul(round_up(desc.k, 2), kPanelRows * size_of_elem(elem_of(desc.format)), "weight");
  }
  zeros_offset = checked_mul(num_panels, panel_bytes, "weight");
  const bool has_zeros = is_integer(desc.format) && desc.has_zeros;
  const int64_t zeros_bytes = has_zeros ? checked_mul(num_panels, desc.groups() * kPanelRows, "weight") : 0;
  expert_bytes = checked_add(zeros_offset, round_up(zeros_bytes, 64), "weight");
}

namespace {

// Elements from the start of a panel to (row of the panel, k).
template <class T>
constexpr int64_t panel_index(int64_t row, int64_t k) {
  const int64_t block = (k / 2 * 2 + row / kLanes) * 2 * kLanes;
  const int64_t lane = row % kLanes;
  return block + (std::is_same_v<T, fastllm::bf16> ? 2 * lane + k % 2 : k % 2 * kLanes + lane);
}

template <class To, class From>
To convert(From x) {
  if constexpr (std::is_same_v<To, From>) {
    return x;
  } else {
    return from_float<To>(to_float(x));
  }
}

// Columns are taken in blocks, so that the lines of a panel are written while they are in the first cache.
constexpr int64_t kPackColumns = 64;

template <class To, class From>
void pack_panel(To* panel, const WeightSlice& slice, int64_t first, int64_t row_begin, int64_t row_end,
                int64_t num_cols) {
  for (int64_t k_begin = 0; k_begin < num_cols; k_begin += kPackColumns) {
    const int64_t k_end = std::min(k_begin + kPackColumns, num_cols);
    for (int64_t row = row_begin; row < row_end; ++row) {
      const From* from = static_cast<const From*>(slice.data) + (first + row - row_begin) * slice.row_stride;
      for (int64_t k = k_begin; k < k_end; ++k) {
        panel[panel_index<To>(row, k)] = convert<To>(from[k * slice.col_stride]);
      }
    }
  }
}

// The case of nearly every checkpoint, rows that lie in one piece into bf16 panels: two columns are one 32-bit unit of
// the panel, which is the transpose of its rows in such units.
template <class From>
void pack_panel_pairs(fastllm::bf16* panel, const WeightSlice& slice, int64_t first, int64_t row_begin, int64_t row_end,
                      int64_t num_cols) {
  for (int64_t k_begin = 0; k_begin < num_cols; k_begin += kPackColumns) {
    const int64_t count = std::min(kPackColumns, num_cols - k_begin);
    for (int64_t row = row_begin; row < row_end; ++row) {
      const From* from = static_cast<const From*>(slice.data) + (first + row - row_begin) * slice.row_stride + k_begin;
      fastllm::bf16* to = panel + panel_index<fastllm::bf16>(row, k_begin);
      for (int64_t k = 0; k + 2 <= count; k += 2) {
        const fastllm::bf16 pair[2] = {convert<fastllm::bf16>(from[k]), convert<fastllm::bf16>(from[k + 1])};
        std::memcpy(to + k * kPanelRows, pair, sizeof(pair));
      }
      if (count % 2 != 0) to[(count - 1) * kPanelRows] = convert<fastllm::bf16>(from[count - 1]);
    }
  }
}

}  // namespace

int64_t CpuBackend::packed_bytes(const WeightDesc& desc) const {
  return checked_mul(PanelLayout(desc).expert_bytes, desc.num_experts, "weight");
}

void CpuBackend::pack(const PackedWeight& to, const WeightSlice& slice) {
  const PanelLayout layout(to.desc);
  std::byte* matrix = to.data + slice.expert * layout.expert_bytes;
  const auto dtype_of = [](WeightFormat f) {
    return f == WeightFormat::kF32 ? DType::kF32 : f == WeightFormat::kBF16 ? DType::kBF16 : DType::kF16;
  };
  with_float_dtype(dtype_of(to.desc.format), [&]<class To>(To) {
    with_float_dtype(slice.dtype, [&]<class From>(From) {
      for (int64_t i = 0; i < slice.num_rows;) {
        const int64_t row = slice.row_begin + i;
        const int64_t begin = row % kPanelRows;
        const int64_t end = std::min(kPanelRows, begin + slice.num_rows - i);
        To* panel = reinterpret_cast<To*>(matrix + row / kPanelRows * layout.panel_bytes);
        bool is_packed = false;
        if constexpr (std::is_same_v<To, fastllm::bf16>) {
          is_packed = slice.col_stride == 1;
          if (is_packed) pack_panel_pairs<From>(panel, slice, i, begin, end, to.desc.k);
        }
        if (!is_packed) pack_panel<To, From>(panel, slice, i, begin, end, to.desc.k);
        i += end - begin;
      }
    });
  });
}

void CpuBackend::embed(const EmbedArgs& args) {
  const PanelLayout layout(args.table->desc);
  if (is_integer(args.table->desc.format)) {
    pool_.parallel_for(args.num_tokens, 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; ++t) {
        unpack_row(*args.table, layout, args.ids[t], args.scale, args.out.row<float>(t));
      }
    });
    return;
  }
  const auto gather = [&]<class T>(T) {
    pool_.parallel_for(args.num_tokens, 4, [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; ++t) {
        const int64_t id = args.ids[t];
        const T* panel = reinterpret_cast<const T*>(args.table->data + id / kPanelRows * layout.panel_bytes);
        float* out = args.out.row<float>(t);
        for (int64_t e = 0; e < args.out.cols; ++e) {
          out[e] = to_float(panel[panel_index<T>(id % kPanelRows, e)]) * args.scale;
        }
      }
    });
  };
  switch (elem_of(args.table->desc.format)) {
    case Elem::kF32:
      return gather(float{});
    case Elem::kBF16:
      return gather(fastllm::bf16{});
    case Elem::kF16:
      return gather(fastllm::f16{});
  }
}

}  // namespace fastllm::cpu
