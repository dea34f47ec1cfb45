// Attention over pages: which rows are computed together, and in what order their tiles are merged.
//
// Item = (kv head, up to 32 rows): the heads of the group times as many columns as fit, so that a page is read once for
// all of them. Columns are consecutive query tokens of one sequence; or, while decoding, sequences that begin with the
// same tile of pages (a shared prefix), which are put side by side for this. An item walks its tiles of 256 tokens
// (absolute positions) from left to right, columns with the same pages together; each tile gives a partial (m, l, o) of
// its own, which is merged into the sum. A row's bits depend on its own position alone: not on the chunk, the batch, or
// the number of threads.
#include <algorithm>
#include <array>

#include "core/checked.h"
#include "cpu/cpu_backend.h"

namespace fastllm::cpu {
namespace {

// How the rows of one call are cut into items.
struct Cut {
  explicit Cut(const PagedAttentionArgs& args)
      : group(args.num_heads / args.kv.spec.num_kv_heads),
        heads(std::min(group, kAttentionRows)),
        columns(std::max<int64_t>(1, kAttentionRows / heads)),
        blocks_per_group(ceil_div(group, heads)),
        head_blocks(blocks_per_group * args.kv.spec.num_kv_heads) {}

  int64_t group;             // query heads per kv head
  int64_t heads;             // of one item
  int64_t columns;           // of one item
  int64_t blocks_per_group;  // of `heads` heads
  int64_t head_blocks;       // items per block of columns
};

struct Column {
  int64_t token = 0;
  int64_t position = 0;
  const int32_t* pages = nullptr;
};

struct Item {
  int64_t kv_head = 0;
  int64_t head_begin = 0;
  int64_t num_heads = 0;
  int64_t num_columns = 0;
  std::array<Column, kAttentionRows> columns;

  [[nodiscard]] int64_t num_rows() const { return num_heads * num_columns; }
};

// Sequences in the order in which they are put into items. Run r is order[run_start[r]] and its neighbours up to
// run_start[r + 1]: one sequence, or several with one new token each that share a prefix. item_start as in Scratch.
struct Runs {
  const StepView& step;
  int32_t* order;
  int32_t* run_start;
  int64_t* item_start;
  int64_t num_runs = 0;

  [[nodiscard]] int64_t num_new(int64_t seq) const { return step.query_start[seq + 1] - step.query_start[seq]; }
  [[nodiscard]] const int32_t* pages(int64_t seq) const { return step.block_table + seq * step.max_pages; }

  // A sequence that may share: it decodes, and its first tile is full.
  [[nodiscard]] bool may_share(int32_t seq) const { return num_new(seq) == 1 && step.context_len[seq] > kTileTokens; }
  [[nodiscard]] bool shares(int32_t a, int32_t b) const {
    return may_share(a) && may_share(b) && std::equal(pages(a), pages(a) + kTilePages, pages(b));
  }

  void make(const Cut& cut) {
    for (int64_t s = 0; s < step.num_seqs; ++s) order[s] = static_cast<int32_t>(s);
    // Those that may share come last, by their pages: the longest common prefixes lie side by side.
    int32_t* end = order + step.num_seqs;
    int32_t* first = std::partition(order, end, [&](int32_t s) { return !may_share(s); });
    std::sort(first, end, [&](int32_t a, int32_t b) {
      const int64_t pages_a = step.context_len[a] / kPageTokens;
      const int64_t pages_b = step.context_len[b] / kPageTokens;
      return std::lexicographical_compare(pages(a), pages(a) + pages_a, pages(b), pages(b) + pages_b);
    });
    item_start[0] = 0;
    for (int64_t s = 0; s < step.num_seqs;) {
      const int64_t begin = s++;
      while (s < step.num_seqs && shares(order[begin], order[s])) ++s;
      const int64_t num_columns = s - begin == 1 ? num_new(order[begin]) : s - begin;
      run_start[num_runs] = static_cast<int32_t>(begin);
      item_start[num_runs + 1] = item_start[num_runs] + ceil_div(num_columns, cut.columns) * cut.head_blocks;
      ++num_runs;
    }
    run_start[num_runs] = static_cast<int32_t>(step.num_seqs);
  }

  [[nodiscard]] int64_t num_items() const { return item_start[num_runs]; }

  // The unit-th item. Blocks of columns of one head follow each other: they read the same pages.
  [[nodiscard]] Item item_at(const Cut& cut, int64_t unit) const {
    const int64_t run = std::upper_bound(item_start, item_start + num_runs + 1, unit) - item_start - 1;
    const int32_t* seqs = order + run_start[run];
    const int64_t num_seqs = run_start[run + 1] - run_start[run];
    const int64_t num_columns = num_seqs == 1 ? num_new(seqs[0]) : num_seqs;
    const int64_t num_blocks = ceil_div(num_columns, cut.columns);
    const int64_t local = unit - item_start[run];
    const int64_t head_block = local / num_blocks;
    const int64_t first = local % num_blocks * cut.columns;
    const int64_t skipped = head_block % cut.blocks_per_group * cut.heads;
    Item item;
    item.kv_head = head_block / cut.blocks_per_group;
    item.head_begin = item.kv_head * cut.group + skipped;
    item.num_heads = std::min(cut.heads, cut.group - skipped);
    item.num_columns = std::min(cut.columns, num_columns - first);
    for (int64_t c = 0; c < item.num_columns; ++c) {
      const int64_t seq = num_seqs == 1 ? seqs[0] : seqs[first + c];
      const int64_t i = num_seqs == 1 ? first + c : 0;
      item.columns[static_cast<std::size_t>(c)] = {step.query_start[seq] + i, step.context_len[seq] - num_new(seq) + i,
                                                   pages(seq)};
    }
    return item;
  }
};

AttentionState from_row(const AttentionState& state, int64_t row, int64_t padded_dim) {
  return {state.m + row, state.l + row, state.o + row * padded_dim};
}

// `next` is what the thread computes afterwards, or nullptr.
void attend(const PagedAttentionArgs& args, const Item& item, const Item* next, const AttentionKernels& kernels,
            const Scratch::PerThread& scratch) {
  const KvSpec& spec = args.kv.spec;
  const PageLayout layout(spec);
  const auto elem = static_cast<std::size_t>(layout.elem);
  const int64_t num_rows = item.num_rows();
  const int64_t padded_dim = round_up(spec.head_dim, kLanes);
  const auto column = [&](int64_t c) -> const Column& { return item.columns[static_cast<std::size_t>(c)]; };
  const float* sinks[kAttentionRows];
  float* out[kAttentionRows];
  for (int64_t i = 0; i < num_rows; ++i) {
    const int64_t token = column(i / item.num_heads).token;
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
  if (kernels.pack_q[elem] != nullptr) kernels.pack_q[elem](job);

  const auto first_seen = [&](int64_t position) {
    return args.window > 0 ? std::max<int64_t>(0, position + 1 - args.window) : 0;
  };
  const auto fetch_next = [&](AttentionTileJob& part, int64_t kv_head, const Column& of, int64_t tile) {
    const int64_t page = std::max(tile * kTilePages, first_seen(of.position) / kPageTokens);
    part.next_kv = args.kv.data + kv_head * layout.head_bytes;
    part.next_pages = of.pages + page;
    part.num_next_pages = of.position / kPageTokens + 1 - page;
  };
  int64_t first = INT64_MAX;
  int64_t stop = 0;
  for (int64_t c = 0; c < item.num_columns; ++c) {
    first = std::min(first, first_seen(column(c).position));
    stop = std::max(stop, column(c).position + 1);
  }
  for (int64_t tile = first / kTileTokens; tile * kTileTokens < stop; ++tile) {
    const int64_t start = tile * kTileTokens;
    for (int64_t i = 0; i < num_rows; ++i) {
      const int64_t position = column(i / item.num_heads).position;
      const int64_t begin = std::clamp<int64_t>(first_seen(position) - start, 0, kTileTokens);
      const int64_t end = std::clamp<int64_t>(position + 1 - start, 0, kTileTokens);
      scratch.begin[i] = static_cast<int32_t>(begin);
      scratch.end[i] = static_cast<int32_t>(std::max(begin, end));
    }
    const auto num_pages = [&](int64_t c) {
      return std::clamp<int64_t>(ceil_div(column(c).position + 1 - start, kPageTokens), 0, kTilePages);
    };
    const auto same_pages = [&](int64_t a, int64_t b) {
      const int32_t* pages_a = column(a).pages + tile * kTilePages;
      const int32_t* pages_b = column(b).pages + tile * kTilePages;
      return pages_a == pages_b ||
             (num_pages(a) == num_pages(b) && std::equal(pages_a, pages_a + num_pages(a), pages_b));
    };
    for (int64_t c = 0; c < item.num_columns;) {
      const int64_t begin = c++;
      while (c < item.num_columns && same_pages(begin, c)) ++c;
      if (num_pages(c - 1) == 0) continue;  // ended before this tile
      const int64_t row = begin * item.num_heads;
      AttentionTileJob part = job;
      part.num_rows = (c - begin) * item.num_heads;
      part.q += row * spec.head_dim;
      part.packed_q += row * padded_dim * kPackedQBytes;
      part.begin += row;
      part.end += row;
      part.pages = column(begin).pages + tile * kTilePages;
      if (c < item.num_columns) {
        fetch_next(part, item.kv_head, column(c), tile);
      } else if (start + kTileTokens < stop) {
        fetch_next(part, item.kv_head, column(c - 1), tile + 1);
      } else if (next != nullptr) {
        fetch_next(part, next->kv_head, next->columns.front(), 0);
      }
      kernels.tile[elem](part);
      kernels.merge(from_row(scratch.sum, row, padded_dim), scratch.tile, part.num_rows, spec.head_dim);
    }
  }
  kernels.finish(scratch.sum, args.sinks != nullptr ? sinks : nullptr, out, num_rows, spec.head_dim);
}

}  // namespace

void CpuBackend::paged_attention(const PagedAttentionArgs& args) {
  const StepView& step = *args.step;
  FASTLLM_CHECK(step.num_seqs <= scratch_.max_seqs, "paged_attention: ", step.num_seqs,
                " sequences but reserve() planned for ", scratch_.max_seqs);
  const Cut cut(args);
  Runs runs{step, scratch_.seq_order, scratch_.run_start, scratch_.item_start};
  runs.make(cut);
  const int64_t num_items = runs.num_items();
  pool_.parallel_for(num_items, 1, [&](int64_t unit, int64_t, int thread_idx) {
    const Item next = unit + 1 < num_items ? runs.item_at(cut, unit + 1) : Item{};  // of a thread's range, mostly
    attend(args, runs.item_at(cut, unit), unit + 1 < num_items ? &next : nullptr, *kernels_.attention,
           scratch_.threads[static_cast<std::size_t>(thread_idx)]);
  });
}

}  // namespace fastllm::cpu
