// Attention of sequences with few new tokens over their pages: out[t, h] = softmax(softcap(scale q . k)) v.
//       q, out [T, H * D]; pages of K and V; block table [S, max_pages]
//
// Split along the context: one warp per (block of 8 NT rows, kv head, unit of 256 positions); an item runs to its end
// on its own and writes either the output (the sequence has one unit) or a cell of partial results that merge.cu folds.
// Warps do not wait for each other: each fills a ring of slots of its own with cp_async and consumes them in order,
//       tile 0: K K K K V V V V   tile 1: K K K K V V V V ...      (a slot: 16 tokens of K or of V; a tile: 4 slots)
// with Ring - 1 slots on their way. Items go to blocks before they go to warps, so that few items spread over all SMs.
// The grid is fixed; items are counted on the device (plan.h).
//
// Bytes moved: 2 D G sizeof(element) per position seen, for each block of rows (the others find it in L2), + cells.
// Order of the sums: unit.h. Defined by reference/attention.cpp; tested in tests/ops/test_attention.py.
#include "cuda/attention/attention.h"
#include "cuda/attention/plan.h"

namespace fastllm::cuda {
namespace {

constexpr int kMaxWarps = 4;

template <class Format, int D>
struct Ring {
  // Bytes on their way per warp: 12 KB and more, so that even two warps an SM keep the memory busy.
  static constexpr int kSlots = Slot<Format, D>::kBytes >= 4096 ? 4 : 8;
  static constexpr int64_t kBytes = int64_t{kSlots} * Slot<Format, D>::kBytes;
};

// The slots of one item, in the order of their use.
template <class Format, int D>
class SlotStream {
 public:
  // Slots [first, end) of the sequence's context of `seen` positions; unit_slot is the first of the unit.
  __device__ SlotStream(const AttentionParams& p, int32_t s, int32_t kv_head, int32_t unit_slot, int32_t first,
                        int32_t end, int32_t seen, std::byte* ring)
      : p_(p),
        kv_head_(kv_head),
        unit_slot_(unit_slot),
        first_(first),
        end_(end),
        seen_(seen),
        ring_(ring),
        next_(first) {
    // Lane i has the page of slot i of the unit.
    const int32_t mine = unit_slot + static_cast<int32_t>(fl::lane_id());
    if (mine >= first && mine < end) {
      page_ = p.block_table[s * p.max_pages + mine * kSlotTokens / p.page_size];
    }
    fl::sync_warp();  // the ring is free
    for (int i = 0; i < kRing - 1; ++i) fetch();
  }
  // The next slot, filled; the one before it is given up.
  __device__ std::byte* take() {
    fl::cp_async_wait<kRing - 2>();
    fl::sync_warp();
    fetch();
    std::byte* slot = ring_ + read_ * kBytes;
    read_ = read_ + 1 == kRing ? 0 : read_ + 1;
    return slot;
  }

 private:
  static constexpr int kRing = Ring<Format, D>::kSlots;
  static constexpr int kBytes = Slot<Format, D>::kBytes;

  // One commit a call, so that the number of newer groups says how old a group is.
  __device__ void fetch() {
    const bool has_next = next_ < end_;
    const int32_t page = fl::shfl(fl::kFullMask, page_, has_next ? next_ - unit_slot_ : 0);
    if (has_next) {
      const int32_t token = next_ * kSlotTokens;
      const int32_t left = seen_ - token;
      Slot<Format, D>::fill(fl::smem_addr(ring_ + write_ * kBytes), p_.pages, page, p_.page_size, token % p_.page_size,
                            kv_head_, is_v_, left < kSlotTokens ? left : kSlotTokens, static_cast<int>(fl::lane_id()),
                            32);
      write_ = write_ + 1 == kRing ? 0 : write_ + 1;
      const int32_t tile = next_ / kTileSlots * kTileSlots;
      if (++next_ == end_ || next_ == tile + kTileSlots) {
        if (!is_v_) next_ = tile < first_ ? first_ : tile;
        is_v_ = !is_v_;
      }
    }
    fl::cp_async_commit();
  }

  const AttentionParams& p_;
  int32_t kv_head_, unit_slot_, first_, end_, seen_;
  std::byte* ring_;
  int32_t page_ = 0;
  int32_t next_;
  bool is_v_ = false;
  int write_ = 0;
  int read_ = 0;
};

template <class Format, int D, int NT>
__device__ void attend_unit(const AttentionParams& p, const Rows<Format, D, NT>& rows, int32_t s, int32_t unit_idx,
                            std::byte* ring, Unit<Format, D, NT>& unit) {
  const int32_t begin = unit_idx * kUnitTokens;
  const int32_t seen = rows.highest() + 1;
  const int32_t lowest = rows.lowest() > begin ? rows.lowest() : begin;
  const int32_t highest = seen < begin + kUnitTokens ? seen : begin + kUnitTokens;
  const int32_t first = lowest / kSlotTokens;
  const int32_t end = (highest + kSlotTokens - 1) / kSlotTokens;
  unit.reset();
  SlotStream<Format, D> slots(p, s, rows.kv_head, begin / kSlotTokens, first, end, seen, ring);
  uint32_t q[D / 16][NT][2];
  rows.load_q(q);

#pragma unroll 1
  for (int32_t tile = first / kTileSlots * kTileSlots; tile < end; tile += kTileSlots) {
    const int32_t j0 = tile * kSlotTokens;
    const bool hides_low = j0 < rows.lowest_of_last();
    const bool hides = hides_low || j0 + kTileTokens - 1 > rows.highest_of_first();
    // Of tokens that exist.
    const bool hides_numbers = hides_low || (hides && rows.highest() > rows.highest_of_first());
    Scores<NT> scores;
    VScales v_scales[kTileSlots];
#pragma unroll
    for (int i = 0; i < kTileSlots; ++i) {
      v_scales[i] = {};
      if (tile + i >= first && tile + i < end) {
        const std::byte* slot = slots.take();
        score_slot<Format, D, NT>(scores[i], q, fl::smem_addr(slot), slot);
        v_scales[i] = unit.load_v_scales(slot);
      } else {
#pragma unroll
        for (int nt = 0; nt < NT; ++nt) {
#pragma unroll
          for (int c = 0; c < 4; ++c) scores[i][nt][c] = -INFINITY;
        }
      }
    }
    if (p.softcap > 0.0f) cap_scores<NT>(scores, p.softcap);
    if (hides) hide_scores<NT>(scores, rows.visible(), j0);
    unit.softmax(scores, v_scales);
#pragma unroll
    for (int i = 0; i < kTileSlots; ++i) {
      if (tile + i < first || tile + i >= end) continue;
      const std::byte* slot = slots.take();
      unit.add_slot(scores[i], fl::smem_addr(slot), slot, hides_numbers, rows, j0 + kSlotTokens * i);
    }
  }
  unit.finish();
}

// registers: 232
template <class Format, int D, int NT>
__global__ void __launch_bounds__(kMaxWarps * 32, 2) attention_decode_kernel(AttentionParams p) {
  auto* shared = fl::smem<std::byte>();
  const auto num_warps = static_cast<int32_t>(blockDim.x / 32);
  const auto warp = static_cast<int32_t>(fl::warp_id());
  std::byte* ring = shared + warp * Ring<Format, D>::kBytes;
  const Plan plan(reinterpret_cast<int32_t*>(shared + num_warps * Ring<Format, D>::kBytes), p.num_seqs);
  make_plan<Work::kDecode>(p, plan, 8 * NT);

  const int32_t num_items = plan.num_items(p.num_seqs);
  const auto num_blocks = static_cast<int32_t>(gridDim.x);
  for (auto i = static_cast<int32_t>(blockIdx.x) + num_blocks * warp; i < num_items; i += num_blocks * num_warps) {
    int32_t item = i;
    const int32_t s = plan.find(p.num_seqs, item);
    const Sequence seq(p, s);
    const Units units(p, seq);
    const int32_t num_row_blocks = (seq.q_len * p.group() + 8 * NT - 1) / (8 * NT);
    const int32_t kv_head = item / num_row_blocks % p.num_kv_heads;
    const int32_t unit_idx = units.first + item / num_row_blocks / p.num_kv_heads;
    const Rows<Format, D, NT> rows(p, seq, kv_head, item % num_row_blocks * 8 * NT);

    Unit<Format, D, NT> unit;
    attend_unit(p, rows, s, unit_idx, ring, unit);
    if (plan.cell_start[s] == Plan::kNoCells) {
      float o[D / 16][NT][4];
      float m[NT][2];
      float l[NT][2];
      unit.clear(o, m, l);
      unit.fold_into(o, m, l);
      rows.store_out(o, m, l);
      continue;
    }
    const int64_t cells = plan.cell_start[s] + static_cast<int64_t>(unit_idx - units.first) * seq.q_len * p.num_heads;
    rows.for_each([&](int32_t row, int nt, int c) {
      const int64_t cell = cells + rows.token(row) * p.num_heads + rows.head(row);
      rows.store(p.partials + cell * D, unit.o, nt, c, 1.0f);
      if (fl::lane_id() < 4) {
        p.partial_ml[2 * cell] = unit.m[nt][c];
        p.partial_ml[2 * cell + 1] = unit.l[nt][c];
      }
    });
  }
}

template <class Format, int D, int NT>
void launch(fl::Stream& stream, const AttentionParams& p, int64_t max_items) {
  const auto& device = stream.device().properties();
  const int64_t plan_bytes = Plan::bytes(p.num_seqs);
  const int64_t fit = (device.smem_per_block - plan_bytes) / Ring<Format, D>::kBytes;
  FASTLLM_CHECK(fit >= 1, "attention: ", p.num_seqs, " sequences are too many for the shared memory of sm_",
                device.arch);
  const int64_t num_warps = fit < kMaxWarps ? fit : kMaxWarps;
  const int64_t smem = num_warps * Ring<Format, D>::kBytes + plan_bytes;
  const fl::Dim3 grid = persistent_grid(device, smem, ceil_div(max_items, num_warps), 1);
  fl::launch(stream, {"attention_decode", grid, narrow<uint32_t>(32 * num_warps), smem},
             attention_decode_kernel<Format, D, NT>, p);
}

}  // namespace

void attention_decode(fl::Stream& stream, const AttentionParams& p, const AttentionShape& shape) {
  with_instance(shape, [&]<class Format, int D>(Instance<Format, D>) {
    // Two blocks of columns need twice the accumulators: with D = 256 they would not fit.
    constexpr int kWide = D <= 128 ? 2 : 1;
    if (shape.typical_rows > 8) {
      launch<Format, D, kWide>(stream, p, shape.max_units * ceil_div(shape.max_decode_rows, 8 * kWide));
    } else {
      launch<Format, D, 1>(stream, p, shape.max_units * ceil_div(shape.max_decode_rows, 8));
    }
  });
}

}  // namespace fastllm::cuda
