#include "cpu/cpu_backend.h"

#include <algorithm>

#include "core/checked.h"
#include "cpu/kernel_table.h"

namespace fastllm {

std::unique_ptr<Backend> make_cpu_backend(int num_threads, CpuIsa isa) {
  return std::make_unique<cpu::CpuBackend>(num_threads, isa);
}

namespace cpu {
namespace {

// Linear layers and experts take larger batches in several passes of this many rows: ten groups, so that re-reading the
// weights costs nothing beside the arithmetic, and the scratch memory does not grow with the step.
constexpr int64_t kMaxPackedRows = 10 * kGroupRows;
constexpr int64_t kMaxMoeTokens = 512;

// A packed activation is at most a float32. (Two planes of bytes and what comes with each group of 32 are less.)
constexpr int64_t kMaxActivationBytes = 4;
constexpr int64_t kMaxActGroup = 128;

}  // namespace

CpuBackend::CpuBackend(int num_threads, CpuIsa isa)
    : name_(std::string("cpu:") + name_of(isa)), kernels_(kernels_for(isa)), pool_(num_threads) {}

Scratch Scratch::take(Arena& arena, const OpLimits& limits, int num_threads) {
  Scratch s;
  const int64_t k = std::max<int64_t>(1, limits.experts_per_token);
  const bool has_experts = limits.num_experts > 0;
  s.moe_pairs = has_experts ? checked_mul(std::min(limits.max_tokens, kMaxMoeTokens), k, "moe") : 0;

  const int64_t rows = std::min(std::max(limits.max_tokens, limits.max_logit_rows), kMaxPackedRows);
  s.packed_rows = std::max(rows, s.moe_pairs);
  s.packed_row_bytes = checked_mul(round_up(limits.max_features, kMaxActGroup), kMaxActivationBytes, "packed");
  s.packed = arena.take<std::byte>(checked_mul(s.packed_rows, s.packed_row_bytes, "packed"));
  s.packed_ffn_row_bytes = checked_mul(round_up(std::max(limits.ffn_features, limits.moe_features), kMaxActGroup),
                                       kMaxActivationBytes, "packed");
  s.packed_ffn = arena.take<std::byte>(checked_mul(s.packed_rows, s.packed_ffn_row_bytes, "packed"));

  s.expert_start = arena.take<int64_t>(limits.num_experts + 1);
  s.pair_token = arena.take<int32_t>(s.moe_pairs);
  s.pair_weight = arena.take<float>(s.moe_pairs);
  s.max_groups = s.packed_rows / kGroupRows + 1 + limits.num_experts;
  s.groups = arena.take<RowGroup>(s.max_groups);

  s.max_seqs = limits.max_seqs;
  s.seq_order = arena.take<int32_t>(limits.max_seqs);
  s.run_start = arena.take<int32_t>(limits.max_seqs + 1);
  s.item_start = arena.take<int64_t>(limits.max_seqs + 1);
  const int64_t padded_dim = round_up(limits.head_dim, kLanes);
  const auto take_state = [&] {
    AttentionState state;
    state.m = arena.take<float>(kAttentionRows);
    state.l = arena.take<float>(kAttentionRows);
    state.o = arena.take<float>(kAttentionRows * padded_dim);
    return state;
  };
  for (int i = 0; i < num_threads; ++i) {
    PerThread t;
    t.q = arena.take<float>(kAttentionRows * padded_dim);
    t.packed_q = arena.take<std::byte>(kAttentionRows * padded_dim * kPackedQBytes);
    t.scores = arena.take<float>(kAttentionRows * kTileTokens);
    t.weights = arena.take<int16_t>(kAttentionRows * kTileTokens);
    t.sum = take_state();
    t.tile = take_state();
    t.begin = arena.take<int32_t>(kAttentionRows);
    t.end = arena.take<int32_t>(kAttentionRows);
    if (s.packed_ffn_row_bytes > 0) {
      t.gate = arena.take<float>(kGroupRows * kFfnStride);
      t.up = arena.take<float>(kGroupRows * kFfnStride);
    }
    t.sampling = SampleScratch::take(arena, limits.vocab_size);
    s.threads.push_back(t);
  }
  return s;
}

int64_t CpuBackend::scratch_bytes(const OpLimits& limits) const {
  Arena plan;
  Scratch::take(plan, limits, num_threads());
  return plan.used();
}

void CpuBackend::reserve(const OpLimits& limits) {
  storage_ = Buffer(scratch_bytes(limits), "cpu scratch");
  Arena arena({storage_.data(), static_cast<std::size_t>(storage_.size())});
  scratch_ = Scratch::take(arena, limits, num_threads());
}

}  // namespace cpu
}  // namespace fastllm
