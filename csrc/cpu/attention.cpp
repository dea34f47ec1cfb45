// Attention over pages: which rows are computed together, and in what order their tiles are merged.
//
// Item = (sequence, kv head, up to 32 rows): the heads of the group times as many consecutive query tokens as fit, so a
// page is read once for all of them. An item walks its tiles of 256 tokens (absolute positions) from left to right;
// each tile gives a partial (m, l, o) of its own, which is merged into the sum. A row's bits depend on its own position
// alone: not on the chunk, the batch, or the number of threads.
#include <algorithm>

#include "core/checked.h"
#include "cpu/cpu_backend.h"

namespace fastllm::cpu {
namespace {

// How the rows of one call are cut into items.
struct Items {
  explicit Items(const PagedAttentionArgs& args)
      : group(args.num_heads / args.kv.spec.num_kv_heads),
        heads(std::min(group, kAttentionRows)),
        tokens(std::max<int64_t>(1, kAttentionRows / heads)),
        head_blocks(ceil_div(group, heads) * args.kv.spec.num_kv_heads) {}

  int64_t group;        // query heads per kv head
  int64_t heads;        // of one item
  int64_t tokens;       // of one item
  int64_t head_blocks;  // items per block of tokens
};

struct Item {
  int64_t seq = 0;
  int64_t kv_head = 0;
  int64_t head_begin = 0;
  int64_t num_heads = 0;
  int64_t token_begin = 0;
  int64_t num_tokens = 0;
  int64_t position = 0;  // of the first token

  [[nodiscard]] int64_t num_rows() const { return num_heads * num_tokens; }
};

// The unit-th item. Blocks of tokens of one head follow each other: they read the same pages.
Item item_at(const PagedAttentionArgs& args, const Items& items, const int64_t* item_start, int64_t unit) {
  const StepView& step = *args.step;
  Item item;
  item.seq = std::upper_bound(item_start, item_start + step.num_seqs + 1, unit) - item_start - 1;
  const int64_t num_new = step.query_start[item.seq + 1] - step.query_start[item.seq];
  const int64_t num_blocks = ceil_div(num_new, items.tokens);
  const int64_t local = unit - item_start[item.seq];
  const int64_t head_block = local / num_blocks;
  const int64_t first = local % num_blocks * items.tokens;
  const int64_t blocks_per_group = items.head_blocks / args.kv.spec.num_kv_heads;
  item.kv_head = head_block / blocks_per_group;
  const int64_t skipped = head_block % blocks_per_group * items.heads;
  item.head_begin = item.kv_head * items.group + skipped;
  item.num_heads = std::min(items.heads, items.group - skipped);
  item.token_begin = step.query_start[item.seq] + first;
  item.num_tokens = std::min(items.tokens, num_new - first);
  item.position = step.context_len[item.seq] - num_new + first;
  return item;
}

void attend(const PagedAttentionArgs& args, const Item& item, const AttentionKernels& kernels,
            const Scratch::PerThread& scratch) {
  const KvSpec& spec = args.kv.spec;
  const PageLayout layout(spec);
  const int64_t num_rows = item.num_rows();
  const int64_t padded_dim = round_up(spec.head_dim, kLanes);
  const float* sinks[kAttentionRows];
  float* out[kAttentionRows];
  for (int64_t i = 0; i < num_rows; ++i) {
    const int64_t token = item.token_begin + i / item.num_heads;
    const int64_t head = item.head_begin + i % item.num_heads;
    std::copy_n(args.q.row<float>(token) + head * spec.head_dim, spec.head_dim, scratch.q + i * spec.head_dim);
    out[i] = args.out.row<float>(token) + head * spec.head_dim;
    sinks[i] = args.sinks != nullptr ? args.sinks + head : nullptr;
    scratch.sum.m[i] = -__builtin_inff();
    scratch.sum.l[i] = 0.0f;
  }
  std::fill_n(scratch.sum.o, num_rows * padded_dim, 0.0f);

  AttentionTileJob job;
  job.q = scratch.q;
  job.packed_q = scratch.packed_q;
  job.num_rows = num_rows;
  job.head_dim = spec.head_dim;
  job.kv = args.kv.data + item.kv_head * layout.head_bytes;
  job.page_bytes = args.kv.page_bytes;
  job.k_scale_offset = layout.k_scales;
  job.v_offset = layout.v;
  job.v_scale_offset = layout.v_scales;
  job.begin = scratch.begin;
  job.end = scratch.end;
  job.scale = args.scale;
  job.softcap = args.softcap;
  job.scores = scratch.scores;
  job.weights = scratch.weights;
  job.out = scratch.tile;

  const int elem = static_cast<int>(layout.elem);
  if (kernels.pack_q[elem] != nullptr) kernels.pack_q[elem](job);

  const auto first_seen = [&](int64_t position) {
    return args.window > 0 ? std::max<int64_t>(0, position + 1 - args.window) : 0;
  };
  const int32_t* pages = args.step->block_table + item.seq * args.step->max_pages;
  const int64_t stop = item.position + item.num_tokens;
  for (int64_t tile = first_seen(item.position) / kTileTokens; tile * kTileTokens < stop; ++tile) {
    const int64_t start = tile * kTileTokens;
    for (int64_t i = 0; i < num_rows; ++i) {
      const int64_t position = item.position + i / item.num_heads;
      const int64_t begin = std::clamp<int64_t>(first_seen(position) - start, 0, kTileTokens);
      const int64_t end = std::clamp<int64_t>(position + 1 - start, 0, kTileTokens);
      scratch.begin[i] = static_cast<int32_t>(begin);
      scratch.end[i] = static_cast<int32_t>(std::max(begin, end));
    }
    job.pages = pages + tile * kTilePages;
    kernels.tile[elem](job);
    kernels.merge(scratch.sum, scratch.tile, num_rows, spec.head_dim);
  }
  kernels.finish(scratch.sum, args.sinks != nullptr ? sinks : nullptr, out, num_rows, spec.head_dim);
}

}  // namespace

void CpuBackend::paged_attention(const PagedAttentionArgs& args) {
  const StepView& step = *args.step;
  FASTLLM_CHECK(step.num_seqs <= scratch_.max_seqs, "paged_attention: ", step.num_seqs,
                " sequences but reserve() planned for ", scratch_.max_seqs);
  const Items items(args);
  int64_t* item_start = scratch_.item_start;
  item_start[0] = 0;
  for (int64_t s = 0; s < step.num_seqs; ++s) {
    const int64_t num_new = step.query_start[s + 1] - step.query_start[s];
    item_start[s + 1] = item_start[s] + ceil_div(num_new, items.tokens) * items.head_blocks;
  }
  pool_.parallel_for(item_start[step.num_seqs], 1, [&](int64_t unit, int64_t, int thread_idx) {
    attend(args, item_at(args, items, item_start, unit), *kernels_.attention,
           scratch_.threads[static_cast<std::size_t>(thread_idx)]);
  });
}

}  // namespace fastllm::cpu
