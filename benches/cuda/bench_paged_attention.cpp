// Attention over pages, 32 query heads, 8 key/value heads, head size 128: decode of one token per sequence, and causal
// prefill. Pages lie scattered; decode cases rotate over as many sets of pages as there is memory for.
#include <algorithm>
#include <string>

#include "bench.h"
#include "core/checked.h"

namespace fastllm::bench {
namespace {

constexpr int64_t kHeads = 32;
constexpr int64_t kKvHeads = 8;
constexpr int64_t kDim = 128;
constexpr int64_t kStoredAtOnce = 4096;
constexpr int64_t kMaxSets = 16;

// A pool of pages with random keys and values in all slots.
struct Pool {
  Pool(Backend& b, DType dtype, int64_t num_tokens) : backend(b), arrays(b) {
    layer.spec = {kKvHeads, kDim, dtype};
    layer.page_bytes = b.kv_page_bytes(layer.spec);
    layer.num_pages = ceil_div(num_tokens, b.page_size());
    layer.data = arrays.make<std::byte>(layer.page_bytes * layer.num_pages);
    const int64_t at_once = std::min(num_tokens, kStoredAtOnce);
    Arrays temporary(b);
    const Mat q = temporary.mat(at_once, kHeads * kDim);
    const Mat k = temporary.random_mat(at_once, kKvHeads * kDim, 1);
    const Mat v = temporary.random_mat(at_once, kKvHeads * kDim, 2);
    for (int64_t begin = 0; begin < num_tokens; begin += at_once) {
      const int64_t count = std::min(at_once, num_tokens - begin);
      std::vector<int64_t> slots;
      for (int64_t i = 0; i < count; ++i) slots.push_back(begin + i);
      RopeAndStoreArgs args;
      args.q = q.top(count);
      args.k = k.top(count);
      args.v = v.top(count);
      args.slots = temporary.put(slots);
      args.kv = layer;
      b.rope_and_store(args);
    }
    b.wait();  // the temporary arrays go
  }
  // The i-th page of a scattered order of all pages.
  [[nodiscard]] int32_t page(int64_t i) const {
    constexpr int64_t kStep = 7919;  // a prime that divides no number of pages here
    return narrow<int32_t>(i * kStep % layer.num_pages);
  }

  Backend& backend;
  Arrays arrays;
  KvLayer layer;
};

// `num_new` tokens at the end of each of `num_seqs` contexts, on set `set` of the pool's pages.
struct Call {
  Call(Pool& pool, Arrays& arrays, int64_t num_seqs, int64_t context, int64_t num_new, int64_t set) {
    const int64_t pages = ceil_div(context, pool.backend.page_size());
    std::vector<int32_t> starts{0};
    std::vector<int32_t> table;
    std::vector<int32_t> positions;
    for (int64_t s = 0; s < num_seqs; ++s) {
      starts.push_back(narrow<int32_t>((s + 1) * num_new));
      for (int64_t p = 0; p < pages; ++p) table.push_back(pool.page((set * num_seqs + s) * pages + p));
      for (int64_t t = 0; t < num_new; ++t) positions.push_back(narrow<int32_t>(context - num_new + t));
    }
    step.num_tokens = num_seqs * num_new;
    step.num_seqs = num_seqs;
    step.max_pages = pages;
    step.max_context_len = context;
    step.query_start = arrays.put(starts);
    step.context_len = arrays.put(std::vector<int32_t>(static_cast<std::size_t>(num_seqs), narrow<int32_t>(context)));
    step.block_table = arrays.put(table);
    step.positions = arrays.put(positions);
  }
  StepView step;
};

void reserve(Backend& backend, int64_t num_tokens, int64_t num_seqs) {
  OpLimits limits;
  limits.max_tokens = num_tokens;
  limits.max_seqs = num_seqs;
  limits.num_heads = kHeads;
  limits.num_kv_heads = kKvHeads;
  limits.head_dim = kDim;
  backend.reserve(limits);
}

void attend(Backend& backend, const Pool& pool, const Call& call, const Mat& q, const Mat& out) {
  PagedAttentionArgs args;
  args.q = q;
  args.num_heads = kHeads;
  args.step = &call.step;
  args.kv = pool.layer;
  args.scale = 0.088388347648f;  // 1 / sqrt(128)
  args.out = out;
  backend.paged_attention(args);
}

std::vector<float> small(Backend& backend, DType dtype, int64_t num_new) {
  constexpr int64_t kSeqs = 2;
  constexpr int64_t kContext = 300;
  reserve(backend, kSeqs * num_new, kSeqs);
  Pool pool(backend, dtype, kSeqs * 304);
  Arrays arrays(backend);
  const Call call(pool, arrays, kSeqs, kContext, num_new, 0);
  const Mat q = arrays.random_mat(kSeqs * num_new, kHeads * kDim, 3);
  const Mat out = arrays.mat(q.rows, q.cols);
  attend(backend, pool, call, q, out);
  return download(backend, out);
}

void decode(Bench& bench, Pool& pool, int64_t num_seqs, int64_t context, const char* target) {
  if (bench.is_smoke()) {
    num_seqs = std::min<int64_t>(num_seqs, 2);
    context = std::min<int64_t>(context, 64);
  }
  Backend& backend = bench.backend();
  reserve(backend, num_seqs, num_seqs);
  Arrays arrays(backend);
  const int64_t pages = num_seqs * ceil_div(context, backend.page_size());
  const int64_t sets = std::clamp<int64_t>(pool.layer.num_pages / pages, 1, kMaxSets);
  std::vector<Call> calls;
  for (int64_t set = 0; set < sets; ++set) calls.emplace_back(pool, arrays, num_seqs, context, 1, set);
  const Mat q = arrays.random_mat(num_seqs, kHeads * kDim, 3);
  const Mat out = arrays.mat(q.rows, q.cols);
  const Timing time = bench.time(static_cast<int>(sets),
                                 [&](int i) { attend(backend, pool, calls[static_cast<std::size_t>(i)], q, out); });
  bench.report({"decode " + std::to_string(num_seqs) + " x " + std::to_string(context) + ", " +
                    name_of(pool.layer.spec.dtype) + " K/V",
                time, static_cast<double>(pages * pool.layer.page_bytes), 0.0, target, false});
}

void prefill(Bench& bench, Pool& pool, int64_t context, const char* target) {
  if (bench.is_smoke()) context = 64;
  Backend& backend = bench.backend();
  reserve(backend, context, 1);
  Arrays arrays(backend);
  const Call call(pool, arrays, 1, context, context, 0);
  const Mat q = arrays.random_mat(context, kHeads * kDim, 3);
  const Mat out = arrays.mat(q.rows, q.cols);
  const Timing time = bench.time(1, [&](int) { attend(backend, pool, call, q, out); });
  const double pairs = 0.5 * static_cast<double>(context) * static_cast<double>(context + 1);
  bench.report({"causal prefill of " + std::to_string(context) + ", " + name_of(pool.layer.spec.dtype) + " K/V", time,
                0.0, 4.0 * kDim * kHeads * pairs, target, false});
}

void run(Bench& bench) {
  for (const DType dtype : {DType::kBF16, DType::kI8}) {
    bench.check(dtype == DType::kI8 ? "decode, int8" : "decode, bf16", 6e-3,
                [&](Backend& b) { return small(b, dtype, 1); });
    bench.check(dtype == DType::kI8 ? "prefill, int8" : "prefill, bf16", 6e-3,
                [&](Backend& b) { return small(b, dtype, 20); });
    const bool is_int8 = dtype == DType::kI8;
    Pool pool(bench.backend(), dtype, bench.is_smoke() ? 256 : 64 * 8192);
    decode(bench, pool, 64, 8192, is_int8 ? "1.6x; 1.78x of bf16" : "85; 94 % of copy");
    decode(bench, pool, 64, 1024, is_int8 ? "" : "70; 85 % of copy");
    decode(bench, pool, 1, 8192, is_int8 ? "" : "16; 12 us");
    if (!is_int8) prefill(bench, pool, 16384, "mma.sync 270; 330 TFLOP/s");
  }
}

}  // namespace
}  // namespace fastllm::bench

int main(int argc, char** argv) {
  return fastllm::bench::bench_main("bench_paged_attention", argc, argv, fastllm::bench::run);
}
