// Integer weights to and from their panels (layout: kernels.h).
//
// Packing is a transpose of 32-bit units: the four codes of a row and quad go to one lane of a line; int4 joins the
// units of rows l and 16 + l by a shift. Bytes shared by two rows of int4 are written at once where a slice has all
// rows of a panel, and bit by bit atomically where it has not, so that slices of disjoint rows may come from several
// threads.
#include "cpu/codes.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>

#include "core/checked.h"
#include "cpu/kernels.h"

namespace fastllm::cpu {
namespace {

static_assert(std::endian::native == std::endian::little);

uint32_t load_quad(const uint8_t* codes, int64_t count) {
  uint32_t quad = 0;
  if (count >= 4) {  // a load, where a copy of a size to be found out would be a call
    std::memcpy(&quad, codes, 4);
  } else {
    std::memcpy(&quad, codes, static_cast<std::size_t>(count));
  }
  return quad;
}

// Where the unit (row of the panel, quad of the group) lies in a block.
int64_t unit_offset(WeightFormat format, int64_t row, int64_t quad) {
  const int64_t lane = 4 * (row % kLanes);
  return format == WeightFormat::kInt4 ? 64 * quad + lane : 128 * quad + 64 * (row / kLanes) + lane;
}

// All rows [0, num_rows) of a panel of int4; codes of row r at codes + r * k.
void pack_block_int4(std::byte* block, const uint8_t* codes, int64_t k, int64_t num_rows, int64_t count) {
  for (int64_t lane = 0; lane < std::min(num_rows, kLanes); ++lane) {
    const uint8_t* low = codes + lane * k;
    const uint8_t* high = lane + kLanes < num_rows ? low + kLanes * k : nullptr;
    std::byte* to = block + 4 * lane;
    for (int64_t i = 0; i < count; i += 4, to += 64) {
      uint32_t unit = load_quad(low + i, count - i);
      if (high != nullptr) unit |= load_quad(high + i, count - i) << 4;
      std::memcpy(to, &unit, 4);
    }
  }
}

// One row of a panel of int4 whose other half may be written by another thread at the same time.
void pack_row_int4(std::byte* block, int64_t row, const uint8_t* codes, int64_t count) {
  const int shift = row < kLanes ? 0 : 4;
  for (int64_t i = 0; i < count; ++i) {
    auto& byte = reinterpret_cast<uint8_t&>(block[unit_offset(WeightFormat::kInt4, row, i / 4) + i % 4]);
    const std::atomic_ref<uint8_t> shared(byte);
    shared.fetch_and(static_cast<uint8_t>(0xf0 >> shift), std::memory_order_relaxed);
    shared.fetch_or(static_cast<uint8_t>(codes[i] << shift), std::memory_order_relaxed);
  }
}

void pack_row_int8(std::byte* block, int64_t row, const uint8_t* codes, int64_t count) {
  for (int64_t i = 0; i < count; i += 4) {
    const uint32_t unit = load_quad(codes + i, count - i);
    std::memcpy(block + unit_offset(WeightFormat::kInt8, row, i / 4), &unit, 4);
  }
}

uint16_t narrow_scale(ScaleKind kind, float scale) {
  return kind == ScaleKind::kF16 ? to_f16(scale).bits : to_bf16(scale).bits;
}

}  // namespace

void CpuBackend::pack_codes(const PackedWeight& to, const CodeSlice& slice) {
  const WeightDesc& desc = to.desc;
  const PanelLayout layout(desc);
  const bool is_int4 = desc.format == WeightFormat::kInt4;
  const bool has_row_scales = layout.format.scales == ScaleKind::kRow;
  const int64_t group = layout.format.group;
  const int64_t num_scales = desc.groups();
  std::byte* matrix = to.data + slice.expert * layout.expert_bytes;
  auto* zeros = reinterpret_cast<uint8_t*>(matrix + layout.zeros_offset);
  for (int64_t i = 0; i < slice.num_rows;) {
    const int64_t panel_idx = (slice.row_begin + i) / kPanelRows;
    const int64_t first = (slice.row_begin + i) % kPanelRows;
    const int64_t rows_of_panel = std::min(kPanelRows, desc.n - panel_idx * kPanelRows);
    const int64_t num_rows = std::min(rows_of_panel - first, slice.num_rows - i);
    std::byte* panel = matrix + panel_idx * layout.panel_bytes;
    std::byte* blocks = panel + (has_row_scales ? kRowScaleBytes : 0);
    for (int64_t g = 0; g * group < desc.k; ++g) {
      std::byte* block = blocks + g * layout.block_bytes;
      const uint8_t* codes = slice.codes + i * desc.k + g * group;
      const int64_t count = std::min(group, desc.k - g * group);
      if (is_int4 && num_rows == rows_of_panel) {
        pack_block_int4(block, codes, desc.k, num_rows, count);
      } else {
        for (int64_t r = 0; r < num_rows; ++r) {
          (is_int4 ? pack_row_int4 : pack_row_int8)(block, first + r, codes + r * desc.k, count);
        }
      }
      if (has_row_scales) continue;
      std::byte* trailer = block + layout.block_bytes - 2 * kPanelRows;
      for (int64_t r = 0; r < num_rows; ++r) {
        const uint16_t scale = narrow_scale(layout.format.scales, slice.scales[(i + r) * num_scales + g]);
        std::memcpy(trailer + 2 * (first + r), &scale, sizeof(scale));
      }
    }
    if (has_row_scales) std::memcpy(panel + 4 * first, slice.scales + i, static_cast<std::size_t>(4 * num_rows));
    for (int64_t r = 0; desc.has_zeros && r < num_rows; ++r) {
      for (int64_t g = 0; g < num_scales; ++g) {
        zeros[(panel_idx * num_scales + g) * kPanelRows + first + r] = slice.zeros[(i + r) * num_scales + g];
      }
    }
    i += num_rows;
  }
}

void unpack_row(const PackedWeight& weight, const PanelLayout& layout, int64_t n, float factor, float* out) {
  const WeightDesc& desc = weight.desc;
  const bool is_int4 = desc.format == WeightFormat::kInt4;
  const bool has_row_scales = layout.format.scales == ScaleKind::kRow;
  const int64_t group = layout.format.group;
  const int64_t row = n % kPanelRows;
  const std::byte* panel = weight.data + n / kPanelRows * layout.panel_bytes;
  const std::byte* block = panel + (has_row_scales ? kRowScaleBytes : 0);
  const auto* zeros = reinterpret_cast<const uint8_t*>(weight.data + layout.zeros_offset);
  for (int64_t g = 0; g * group < desc.k; ++g, block += layout.block_bytes) {
    float scale = 0.0f;
    if (has_row_scales) {
      std::memcpy(&scale, panel + 4 * row, sizeof(scale));
    } else {
      uint16_t bits = 0;
      std::memcpy(&bits, block + layout.block_bytes - 2 * kPanelRows + 2 * row, sizeof(bits));
      scale = layout.format.scales == ScaleKind::kF16 ? to_float(f16{bits}) : to_float(bf16{bits});
    }
    int32_t zero = desc.symmetric_zero();
    if (desc.has_zeros) {
      const int64_t at = n / kPanelRows * desc.groups() + (has_row_scales ? 0 : g);
      zero = zeros[at * kPanelRows + row];
    }
    const int64_t begin = g * group;
    for (int64_t k = begin; k < std::min(begin + group, desc.k); ++k) {
      const int64_t i = k - begin;
      auto code = static_cast<int32_t>(block[unit_offset(desc.format, row, i / 4) + i % 4]);
      if (is_int4) code = row < kLanes ? code & 15 : code >> 4;
      out[k] = static_cast<float>(code - zero) * scale * factor;
    }
  }
}

}  // namespace fastllm::cpu
