// The host entry: which kernels a call takes, and the bounds of their grids.
//
// Caches of 8 and 16 bits with a head size that has an instance go to decode, merge and prefill, which share a step's
// sequences out among themselves on the device (plan.h); everything else goes to the plain kernel. That is a matter of
// the model alone, so a row's bits do not depend on the step.
#include <algorithm>

#include "cuda/attention/attention.h"
#include "cuda/attention/attention_simple.h"
#include "cuda/attention/plan.h"
#include "cuda/kernels.h"
#include "cuda/layout.h"

namespace fastllm::cuda {
namespace {

// Partial results for 32 units (8192 positions) of every sequence. What does not fit is done by prefill: as right, not
// as parallel.
constexpr int64_t kUnitsPerSequence = 32;

PagesView pages_view(const KvLayer& kv) {
  return {kv.data, kv.page_bytes, kv_part_size(kv.spec) * size_of(kv.spec.dtype), k_scales_offset(kv.spec),
          v_scales_offset(kv.spec)};
}

AttentionParams params_of(const PagedAttentionArgs& args, const AttentionCells& cells) {
  const StepView& step = *args.step;
  AttentionParams p{};
  p.q = device_mat(args.q);
  p.out = device_mat(args.out);
  p.pages = pages_view(args.kv);
  p.query_start = step.query_start;
  p.context_len = step.context_len;
  p.block_table = step.block_table;
  p.sinks = args.sinks;
  p.max_pages = step.max_pages;
  p.page_size = static_cast<int32_t>(kPageSize);
  p.num_seqs = narrow<int32_t>(step.num_seqs);
  p.num_heads = narrow<int32_t>(args.num_heads);
  p.num_kv_heads = narrow<int32_t>(args.kv.spec.num_kv_heads);
  p.window = narrow<int32_t>(std::min(args.window, step.max_pages * kPageSize));
  p.q_factor = args.softcap > 0.0f ? args.scale / args.softcap : args.scale * kLog2E;
  p.softcap = args.softcap * kLog2E;
  p.partials = cells.o;
  p.partial_ml = cells.ml;
  p.num_cells = cells.count;
  return p;
}

AttentionShape shape_of(const PagedAttentionArgs& args) {
  const StepView& step = *args.step;
  const int64_t group = args.num_heads / args.kv.spec.num_kv_heads;
  const int64_t num_seqs = std::max<int64_t>(step.num_seqs, 1);
  const int64_t tokens = ceil_div(step.num_tokens, num_seqs);  // of a sequence, if all have as many
  AttentionShape shape;
  shape.dtype = args.kv.spec.dtype;
  shape.head_dim = args.kv.spec.head_dim;
  shape.max_rows = step.num_tokens * group;
  shape.max_units = step.num_seqs * args.kv.spec.num_kv_heads *
                    std::max<int64_t>(ceil_div(step.max_pages * kPageSize, kUnitTokens), 1);
  shape.max_decode_rows = std::max<int64_t>(group, kMaxDecodeRows);
  shape.max_decode_tokens = std::min(step.num_tokens, kMaxDecodeTokens * step.num_seqs);
  shape.typical_rows = tokens <= kMaxDecodeTokens ? tokens * group : group;
  return shape;
}

}  // namespace

AttentionCells AttentionCells::take(Arena& arena, const OpLimits& limits) {
  AttentionCells cells;
  const int64_t per_sequence = checked_mul(limits.num_heads, kUnitsPerSequence, "attention");
  cells.count = checked_mul(limits.max_seqs, per_sequence, "attention");
  FASTLLM_CHECK(cells.count <= INT32_MAX, "too many cells for attention: ", cells.count);
  cells.o = arena.take<float>(checked_mul(cells.count, limits.head_dim, "attention"));
  cells.ml = arena.take<float>(checked_mul(cells.count, 2, "attention"));
  return cells;
}

void paged_attention(fl::Stream& stream, const PagedAttentionArgs& args, const Workspace& workspace) {
  const KvSpec& spec = args.kv.spec;
  if (spec.dtype == DType::kF32 || !has_instance(spec.head_dim)) return attention_simple(stream, args);
  if (args.step->num_tokens == 0) return;
  const AttentionParams p = params_of(args, workspace.attention_cells);
  const AttentionShape shape = shape_of(args);
  // Kernels that would find nothing to do whatever the lengths on the device are: one unit leaves nothing to merge, and
  // a step of few tokens with a cell for each unit leaves nothing to prefill. (More tokens may all be of one sequence.)
  const int64_t num_units = ceil_div(args.step->max_pages * kPageSize, kUnitTokens);
  const int64_t num_tokens = args.step->num_tokens;
  const bool all_decode =
      are_for_decode(num_tokens, shape.max_rows) && num_tokens * num_units * args.num_heads <= p.num_cells;
  attention_decode(stream, p, shape);
  if (num_units > 1) attention_merge(stream, p, shape);
  if (!all_decode) attention_prefill(stream, p, shape);
}

}  // namespace fastllm::cuda
