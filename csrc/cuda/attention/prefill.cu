// Attention of sequences with many new tokens over their pages (whole prompts, chunks of them): the same formula,
// arguments and arithmetic as decode.cu, another division of the work.
//
// One block per (128 packed rows, kv head): eight warps with 8 NT rows each, every warp walks over all tiles that its
// rows see. The block shares a ring of stages (two slots: 32 tokens of K or of V) filled by cp_async,
//       tile 0: K K V V   tile 1: K K V V ...
// with one barrier per stage. At the end of a unit its result folds into the running one, which costs D / 2 registers a
// thread more than FlashAttention-2 has, and buys that a row gets the bits that decode would give it. Last rows first:
// they see most.
//
// FLOPs: 4 D H per visible pair. Operands come from shared memory once per 8 NT rows, which is what bounds it.
// Order of the sums: unit.h. Defined by reference/attention.cpp; tested in tests/ops/test_attention.py.
#include "cuda/attention/attention.h"
#include "cuda/attention/plan.h"

namespace fastllm::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kStageSlots = 2;
constexpr int kTileStages = kTileSlots / kStageSlots;
constexpr int kRing = 4;  // stages; 70 KB with D = 256 in 16 bits, so the 99 KB of an sm_89 hold it

// NT: o and its running sum take D / 4 * NT registers each. Codes take some more, and have half the bytes to share
// among rows.
template <class Format, int D>
constexpr int kColumnBlocks = D <= (Format::kHasScales ? 80 : 128) ? 2 : 1;
template <class Format, int D>
constexpr int kBlockRows = 8 * kColumnBlocks<Format, D> * kWarps;

template <class Format, int D>
constexpr int64_t kRingBytes = int64_t{kRing} * kStageSlots * Slot<Format, D>::kBytes;

// The stages of one item, in the order of their use. All threads of the block together.
template <class Format, int D>
class StageStream {
 public:
  // Positions [lowest, highest]; what lies outside comes as zeros and is not read.
  __device__ StageStream(const AttentionParams& p, int32_t s, int32_t kv_head, int32_t lowest, int32_t highest,
                         std::byte* ring)
      : p_(p),
        pages_(p.block_table + s * p.max_pages),
        kv_head_(kv_head),
        lowest_(lowest),
        highest_(highest),
        ring_(ring) {
    fl::sync_threads();  // the ring is free
    for (int i = 0; i < kRing - 1; ++i) fetch();
  }
  __device__ std::byte* take() {
    fl::cp_async_wait<kRing - 2>();
    fl::sync_threads();
    fetch();
    return ring_ + num_fetched_ % kRing * kBytes;  // kRing stages behind the next
  }

 private:
  static constexpr int kBytes = kStageSlots * Slot<Format, D>::kBytes;

  __device__ void fetch() {
    const int in_tile = num_fetched_ % (2 * kTileStages);
    const int32_t tile = lowest_ / kTileTokens + num_fetched_ / (2 * kTileStages);
    if (tile * kTileTokens <= highest_) {
      constexpr int kThreadsPerSlot = kThreads / kStageSlots;
      const int thread = static_cast<int>(threadIdx.x);
      const int slot = thread / kThreadsPerSlot;
      const int32_t token = tile * kTileTokens + kSlotTokens * (in_tile % kTileStages * kStageSlots + slot);
      int32_t num_valid = highest_ + 1 - token;
      if (num_valid > kSlotTokens) num_valid = kSlotTokens;
      if (token + kSlotTokens <= lowest_) num_valid = 0;
      const int32_t page = num_valid > 0 ? pages_[token / p_.page_size] : 0;
      std::byte* to = ring_ + num_fetched_ % kRing * kBytes + slot * Slot<Format, D>::kBytes;
      Slot<Format, D>::fill(fl::smem_addr(to), p_.pages, page, p_.page_size, token % p_.page_size, kv_head_,
                            in_tile >= kTileStages, num_valid, thread % kThreadsPerSlot, kThreadsPerSlot);
    }
    fl::cp_async_commit();
    ++num_fetched_;
  }

  const AttentionParams& p_;
  const int32_t* pages_;
  int32_t kv_head_, lowest_, highest_;
  std::byte* ring_;
  int num_fetched_ = 0;
};

// registers: 255
template <class Format, int D>
__global__ void __launch_bounds__(kThreads) attention_prefill_kernel(AttentionParams p) {
  constexpr int NT = kColumnBlocks<Format, D>;
  auto* shared = fl::smem<std::byte>();
  const Plan plan(reinterpret_cast<int32_t*>(shared + kRingBytes<Format, D>), p.num_seqs);
  make_plan<Work::kPrefill>(p, plan, kBlockRows<Format, D>);

  // The count stays in shared memory: registers are short.
#pragma unroll 1
  for (auto n = static_cast<int32_t>(blockIdx.x); n < plan.num_items(p.num_seqs);
       n += static_cast<int32_t>(gridDim.x)) {
    int32_t item = n;
    const int32_t s = plan.find(p.num_seqs, item);
    const Sequence seq(p, s);
    const int32_t num_rows = seq.q_len * p.group();
    const int32_t num_row_blocks = (num_rows + kBlockRows<Format, D> - 1) / kBlockRows<Format, D>;
    const int32_t kv_head = item % p.num_kv_heads;
    const int32_t block_first = (num_row_blocks - 1 - item / p.num_kv_heads) * kBlockRows<Format, D>;
    const int32_t block_last =
        block_first + kBlockRows<Format, D> < num_rows ? block_first + kBlockRows<Format, D> - 1 : num_rows - 1;
    const int32_t lowest = first_seen(p, seq.position(block_first / p.group()));
    const int32_t highest = seq.position(block_last / p.group());
    const Rows<Format, D, NT> rows(p, seq, kv_head, block_first + static_cast<int32_t>(fl::warp_id()) * 8 * NT);

    StageStream<Format, D> stages(p, s, kv_head, lowest, highest, shared);
    uint32_t q[D / 16][NT][2];
    rows.load_q(q);

    Unit<Format, D, NT> unit;
    unit.reset();
    float o[D / 16][NT][4];
    float m[NT][2];
    float l[NT][2];
    unit.clear(o, m, l);
#pragma unroll 1
    for (int32_t j0 = lowest / kTileTokens * kTileTokens; j0 <= highest; j0 += kTileTokens) {
      const bool is_seen = !rows.is_empty() && j0 <= rows.highest() && j0 + kTileTokens > rows.lowest();
      const bool hides = j0 < rows.lowest_of_last() || j0 + kTileTokens - 1 > rows.highest_of_first();
      Scores<NT> scores;
      VScales v_scales[kTileSlots];
#pragma unroll
      for (int stage = 0; stage < kTileStages; ++stage) {
        const std::byte* slots = stages.take();
        if (!is_seen) continue;
#pragma unroll
        for (int i = 0; i < kStageSlots; ++i) {
          const std::byte* slot = slots + i * Slot<Format, D>::kBytes;
          score_slot<Format, D, NT>(scores[kStageSlots * stage + i], q, fl::smem_addr(slot), slot);
          v_scales[kStageSlots * stage + i] = unit.load_v_scales(slot);
        }
      }
      if (is_seen) {
        if (p.softcap > 0.0f) cap_scores<NT>(scores, p.softcap);
        if (hides) hide_scores<NT>(scores, rows.visible(), j0);
        unit.softmax(scores, v_scales);
      }
#pragma unroll
      for (int stage = 0; stage < kTileStages; ++stage) {
        const std::byte* slots = stages.take();
        if (!is_seen) continue;
#pragma unroll
        for (int i = 0; i < kStageSlots; ++i) {
          const std::byte* slot = slots + i * Slot<Format, D>::kBytes;
          const int idx = kStageSlots * stage + i;
          unit.add_slot(scores[idx], fl::smem_addr(slot), slot, hides, rows, j0 + kSlotTokens * idx);
        }
      }
      const bool ends_unit = (j0 + kTileTokens) % kUnitTokens == 0 || j0 + kTileTokens > highest;
      // Some tile of the unit was seen.
      if (ends_unit && !rows.is_empty() && rows.highest() >= j0 / kUnitTokens * kUnitTokens &&
          rows.lowest() < j0 + kTileTokens) {
        unit.finish();
        unit.fold_into(o, m, l);
        unit.reset();
      }
    }
    if (!rows.is_empty()) rows.store_out(o, m, l);
  }
}

}  // namespace

void attention_prefill(fl::Stream& stream, const AttentionParams& p, const AttentionShape& shape) {
  with_instance(shape, [&]<class Format, int D>(Instance<Format, D>) {
    const int64_t smem = kRingBytes<Format, D> + Plan::bytes(p.num_seqs);
    const int64_t items = (shape.max_rows / kBlockRows<Format, D> + p.num_seqs) * p.num_kv_heads;
    const fl::Dim3 grid = persistent_grid(stream.device().properties(), smem, items, 2);
    fl::launch(stream, {"attention_prefill", grid, kThreads, smem}, attention_prefill_kernel<Format, D>, p);
  });
}

}  // namespace fastllm::cuda
