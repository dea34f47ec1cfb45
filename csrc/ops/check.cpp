#include "ops/check.h"

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "core/checked.h"

namespace fastllm {
namespace {

// Says "op: tensor ...": every check below goes through one of these, so that the messages read alike.
class Expect {
 public:
  explicit Expect(const char* op) : op_(op) {}

  template <class... Parts>
  void that(bool condition, Parts&&... parts) const {
    if (!condition) fail(ErrorKind::kInvalidRequest, op_, ": ", std::forward<Parts>(parts)...);
  }

  // float32, [rows, cols], rows that do not overlap, memory present unless empty.
  void matrix(const char* name, const Mat& m, int64_t rows, int64_t cols) const {
    that(m.dtype == DType::kF32, name, " is ", name_of(m.dtype), ", expected float32");
    that(m.rows == rows && m.cols == cols, name, " is [", m.rows, ", ", m.cols, "], expected [", rows, ", ", cols, "]");
    that(m.rows <= 1 || m.stride >= m.cols, name, " has a row stride of ", m.stride, ", expected at least ", m.cols);
    that(m.data != nullptr || m.rows == 0 || m.cols == 0, name, " is null");
  }
  void matrix(const char* name, const Mat& m) const { matrix(name, m, m.rows, m.cols); }

  void pointer(const char* name, const void* p, int64_t count) const {
    that(p != nullptr || count == 0, name, " is null, expected ", count, " entries");
  }
  void positive(const char* name, int64_t x) const { that(x > 0, name, " is ", x, ", expected at least 1"); }
  void not_negative(const char* name, int64_t x) const { that(x >= 0, name, " is ", x, ", expected at least 0"); }
  void finite(const char* name, float x) const {
    that(std::isfinite(x), name, " is ", x, ", expected a finite number");
  }

  template <class Index>
  void indices(const char* name, const Index* x, int64_t count, int64_t limit) const {
    pointer(name, x, count);
    for (int64_t i = 0; i < count; ++i) index(name, i, int64_t{x[i]}, limit);
  }
  void index(const char* name, int64_t i, int64_t x, int64_t limit) const {
    that(x >= 0 && x < limit, name, "[", i, "] is ", x, ", expected 0 <= ", name, " < ", limit);
  }

  void weight(const char* name, const PackedWeight* w, int64_t n, int64_t k, int64_t num_experts) const {
    that(w != nullptr && w->data != nullptr, name, " is null");
    const WeightDesc& d = w->desc;
    that(d.n == n && d.k == k, name, " is [", d.n, ", ", d.k, "], expected [", n, ", ", k, "]");
    that(d.num_experts == num_experts, name, " has ", d.num_experts, " experts, expected ", num_experts);
  }

  void kv(const KvLayer& kv) const {
    positive("kv num_kv_heads", kv.spec.num_kv_heads);
    positive("kv head_dim", kv.spec.head_dim);
    that(kv.data != nullptr || kv.num_pages == 0, "kv is null");
  }

 private:
  const char* op_;
};

bool is_activation_valid(const ActivationSpec& a) {
  return a.kind != Activation::kClampedSwiglu || (std::isfinite(a.alpha) && a.limit > 0.0f);
}

void check_step(const Expect& expect, const StepView& step, const KvLayer& kv, int64_t page_size) {
  expect.not_negative("num_seqs", step.num_seqs);
  expect.not_negative("max_pages", step.max_pages);
  expect.pointer("query_start", step.query_start, step.num_seqs + 1);
  expect.pointer("context_len", step.context_len, step.num_seqs);
  expect.pointer("positions", step.positions, step.num_tokens);
  expect.pointer("block_table", step.block_table, step.num_seqs * step.max_pages);
  expect.that(step.query_start[0] == 0, "query_start[0] is ", step.query_start[0], ", expected 0");
  expect.that(step.query_start[step.num_seqs] == step.num_tokens, "query_start ends with ",
              step.query_start[step.num_seqs], ", expected T = ", step.num_tokens);
  for (int64_t s = 0; s < step.num_seqs; ++s) {
    const int64_t begin = step.query_start[s];
    const int64_t end = step.query_start[s + 1];
    expect.that(begin <= end && end <= step.num_tokens, "query_start[", s + 1, "] is ", end,
                ", expected no less than query_start[", s, "] = ", begin, " and at most T = ", step.num_tokens);
    const int64_t context_len = step.context_len[s];
    expect.that(context_len >= end - begin, "context_len[", s, "] is ", context_len, ", expected at least the ",
                end - begin, " new tokens of the sequence");
    expect.that(context_len <= step.max_context_len, "context_len[", s, "] is ", context_len,
                ", more than max_context_len = ", step.max_context_len);
    const int64_t num_pages = ceil_div(context_len, page_size);
    expect.that(num_pages <= step.max_pages, "context_len[", s, "] is ", context_len, " and needs ", num_pages,
                " pages of ", page_size, " tokens; block_table has ", step.max_pages, " columns");
    expect.indices("block_table", step.block_table + s * step.max_pages, num_pages, kv.num_pages);
    for (int64_t t = begin; t < end; ++t) {
      const int64_t position = context_len - end + t;
      expect.that(step.positions[t] == position, "positions[", t, "] is ", step.positions[t], ", expected ", position,
                  " (the new tokens are the last of their context)");
    }
  }
}

void check_sample_row(const Expect& expect, const SampleRow& row, int64_t r, int64_t vocab_size) {
  const auto at = [r](const char* name) { return "row " + std::to_string(r) + ": " + name; };
  expect.that(std::isfinite(row.temperature) && row.temperature >= 0.0f, at("temperature"), " is ", row.temperature,
              ", expected a finite number of at least 0");
  expect.that(row.top_k >= 0, at("top_k"), " is ", row.top_k, ", expected at least 0 (0: all)");
  expect.that(row.top_p > 0.0f && row.top_p <= 1.0f, at("top_p"), " is ", row.top_p, ", expected 0 < top_p <= 1");
  expect.that(row.min_p >= 0.0f && row.min_p <= 1.0f, at("min_p"), " is ", row.min_p, ", expected 0 <= min_p <= 1");
  expect.that(std::isfinite(row.repetition_penalty) && row.repetition_penalty > 0.0f, at("repetition_penalty"), " is ",
              row.repetition_penalty, ", expected a finite number above 0");
  expect.finite(at("frequency_penalty").c_str(), row.frequency_penalty);
  expect.finite(at("presence_penalty").c_str(), row.presence_penalty);
  for (const TokenCount& count : row.counts) {
    expect.that(count.token >= 0 && count.token < vocab_size, at("counts"), " has token ", count.token, ", V is ",
                vocab_size);
    expect.that(count.in_output >= 0, at("counts"), " has in_output ", count.in_output, " for token ", count.token);
  }
  for (const LogitBias& bias : row.bias) {
    expect.that(bias.token >= 0 && bias.token < vocab_size, at("bias"), " has token ", bias.token, ", V is ",
                vocab_size);
    expect.that(bias.bias < INFINITY, at("bias"), " of token ", bias.token, " is ", bias.bias,
                ", expected a finite number or -infinity");
  }
  int64_t previous = -1;
  for (const int32_t token : row.allowed) {
    expect.that(token > previous && token < vocab_size, at("allowed"), " has token ", token, " after ", previous,
                ", expected ascending ids below V = ", vocab_size);
    previous = token;
  }
  expect.that(row.num_top >= 0 && row.num_top <= vocab_size, at("num_top"), " is ", row.num_top,
              ", expected 0 <= num_top <= V = ", vocab_size);
  expect.pointer(at("top_tokens").c_str(), row.top_tokens, row.num_top);
  expect.pointer(at("top_logprobs").c_str(), row.top_logprobs, row.num_top);
  expect.that(row.forced_token >= -1 && row.forced_token < vocab_size, at("forced_token"), " is ", row.forced_token,
              ", expected -1 (none) or an id below V = ", vocab_size);
}

}  // namespace

void check(const EmbedArgs& args) {
  const Expect expect("embed");
  expect.not_negative("num_tokens", args.num_tokens);
  expect.that(args.table != nullptr && args.table->data != nullptr, "table is null");
  expect.that(args.table->desc.num_experts == 1, "table has ", args.table->desc.num_experts, " experts, expected 1");
  expect.matrix("out", args.out, args.num_tokens, args.table->desc.k);
  expect.indices("ids", args.ids, args.num_tokens, args.table->desc.n);
}

void check(const RmsNormArgs& args, int64_t num_row_ids) {
  const Expect expect("rms_norm");
  expect.matrix("x", args.x);
  expect.positive("group", args.group);
  expect.that(args.x.cols % args.group == 0, "x has ", args.x.cols, " columns, expected a multiple of the group ",
              args.group);
  expect.pointer("weight", args.weight, args.group);
  expect.that(args.eps >= 0.0f && std::isfinite(args.eps), "eps is ", args.eps, ", expected a number of at least 0");
  if (args.residual.data != nullptr) expect.matrix("residual", args.residual, args.x.rows, args.x.cols);
  if (args.row_ids == nullptr) {
    expect.matrix("y", args.y, args.x.rows, args.x.cols);
    return;
  }
  expect.matrix("y", args.y, num_row_ids, args.x.cols);
  expect.indices("row_ids", args.row_ids, num_row_ids, args.x.rows);
  expect.that(args.y.data != args.x.data || num_row_ids == 0, "y is x, which row_ids does not allow");
}

void check(const LinearArgs& args) {
  const Expect expect("linear");
  expect.that(args.weight != nullptr && args.weight->data != nullptr, "weight is null");
  const WeightDesc& desc = args.weight->desc;
  expect.that(desc.num_experts == 1, "weight has ", desc.num_experts, " experts, expected 1");
  expect.matrix("x", args.x, args.x.rows, desc.k);
  expect.matrix("y", args.y, args.x.rows, desc.n);
}

void check(const RopeTableArgs& args) {
  const Expect expect("rope_table");
  expect.not_negative("num_tokens", args.num_tokens);
  expect.not_negative("num_freqs", args.num_freqs);
  const int64_t count = checked_mul(args.num_tokens, args.num_freqs, "rope_table");
  expect.pointer("positions", args.positions, args.num_tokens);
  expect.pointer("inv_freq", args.inv_freq, args.num_freqs);
  expect.pointer("cos", args.cos, count);
  expect.pointer("sin", args.sin, count);
}

void check(const RopeAndStoreArgs& args, int64_t page_size) {
  const Expect expect("rope_and_store");
  expect.kv(args.kv);
  const KvSpec& spec = args.kv.spec;
  const int64_t num_tokens = args.q.rows;
  expect.matrix("q", args.q);
  expect.that(args.q.cols % (spec.num_kv_heads * spec.head_dim) == 0 && args.q.cols > 0, "q has ", args.q.cols,
              " columns, expected H * D with H a multiple of G = ", spec.num_kv_heads, " and D = ", spec.head_dim);
  expect.matrix("k", args.k, num_tokens, spec.num_kv_heads * spec.head_dim);
  expect.matrix("v", args.v, num_tokens, spec.num_kv_heads * spec.head_dim);
  expect.that(args.num_freqs >= 0 && 2 * args.num_freqs <= spec.head_dim, "num_freqs is ", args.num_freqs,
              ", expected at most D / 2 = ", spec.head_dim / 2);
  expect.pointer("cos", args.cos, num_tokens * args.num_freqs);
  expect.pointer("sin", args.sin, num_tokens * args.num_freqs);
  expect.indices("slots", args.slots, num_tokens, checked_mul(args.kv.num_pages, page_size, "kv slots"));
  // Two tokens in one slot would leave whichever thread came last.
  std::vector<int64_t> slots(args.slots, args.slots + num_tokens);
  std::ranges::sort(slots);
  const auto twice = std::ranges::adjacent_find(slots);
  expect.that(twice == slots.end(), "slots has ", twice == slots.end() ? 0 : *twice, " twice");
}

void check(const PagedAttentionArgs& args, int64_t page_size) {
  const Expect expect("paged_attention");
  expect.kv(args.kv);
  expect.that(args.step != nullptr, "step is null");
  expect.positive("num_heads", args.num_heads);
  expect.that(args.num_heads % args.kv.spec.num_kv_heads == 0, "num_heads is ", args.num_heads,
              ", expected a multiple of G = ", args.kv.spec.num_kv_heads);
  const int64_t cols = checked_mul(args.num_heads, args.kv.spec.head_dim, "paged_attention: q");
  expect.matrix("q", args.q, args.step->num_tokens, cols);
  expect.matrix("out", args.out, args.step->num_tokens, cols);
  expect.finite("scale", args.scale);
  expect.not_negative("window", args.window);
  expect.that(args.softcap >= 0.0f && std::isfinite(args.softcap), "softcap is ", args.softcap,
              ", expected 0 (none) or a positive number");
  check_step(expect, *args.step, args.kv, page_size);
}

void check(const GatedActivationArgs& args) {
  const Expect expect("gated_activation");
  expect.matrix("gate_up", args.gate_up);
  expect.that(args.gate_up.cols % 2 == 0, "gate_up has ", args.gate_up.cols, " columns, expected 2 F");
  expect.matrix("y", args.y, args.gate_up.rows, args.gate_up.cols / 2);
  expect.that(is_activation_valid(args.activation), "alpha is ", args.activation.alpha, " and limit ",
              args.activation.limit, ", expected a finite alpha and a positive limit");
}

void check(const MoeRouteArgs& args) {
  const Expect expect("moe_route");
  expect.matrix("logits", args.logits);
  expect.that(args.top_k >= 1 && args.top_k <= args.logits.cols, "top_k is ", args.top_k,
              ", expected 1 <= top_k <= X = ", args.logits.cols);
  expect.finite("weight_scale", args.weight_scale);
  expect.pointer("experts", args.experts, args.logits.rows * args.top_k);
  expect.pointer("weights", args.weights, args.logits.rows * args.top_k);
}

void check(const MoeFfnArgs& args) {
  const Expect expect("moe_ffn");
  expect.that(args.gate_up != nullptr && args.down != nullptr, "gate_up or down is null");
  const WeightDesc& down = args.down->desc;
  expect.matrix("x", args.x, args.x.rows, args.gate_up->desc.k);
  expect.weight("gate_up", args.gate_up, 2 * down.k, args.x.cols, down.num_experts);
  expect.weight("down", args.down, args.x.cols, down.k, down.num_experts);
  expect.matrix("y", args.y, args.x.rows, args.x.cols);
  expect.that(args.top_k >= 1 && args.top_k <= down.num_experts, "top_k is ", args.top_k,
              ", expected 1 <= top_k <= X = ", down.num_experts);
  const int64_t count = args.x.rows * args.top_k;
  expect.pointer("weights", args.weights, count);
  expect.indices("experts", args.experts, count, down.num_experts);
  expect.that(args.y.data != args.x.data || args.x.rows == 0, "y is x, expected memory of its own");
  expect.that(is_activation_valid(args.activation), "alpha is ", args.activation.alpha, " and limit ",
              args.activation.limit, ", expected a finite alpha and a positive limit");
  // An expert twice in a row would be computed twice by one backend and once by another.
  std::vector<int32_t> chosen(static_cast<std::size_t>(args.top_k));
  for (int64_t t = 0; t < args.x.rows; ++t) {
    std::copy_n(args.experts + t * args.top_k, args.top_k, chosen.begin());
    std::ranges::sort(chosen);
    expect.that(std::ranges::adjacent_find(chosen) == chosen.end(), "experts[", t, "] names an expert twice");
  }
}

void check(const AddArgs& args) {
  const Expect expect("add");
  expect.matrix("residual", args.residual);
  expect.matrix("x", args.x, args.residual.rows, args.residual.cols);
  if (args.gate.data != nullptr) expect.matrix("gate", args.gate, args.residual.rows, 1);
}

void check(const SoftcapArgs& args) {
  const Expect expect("softcap");
  expect.matrix("x", args.x);
  expect.that(args.cap > 0.0f && std::isfinite(args.cap), "cap is ", args.cap, ", expected a positive number");
}

void check(const SampleArgs& args) {
  const Expect expect("sample");
  expect.not_negative("num_rows", args.num_rows);
  expect.that(args.vocab_size >= 1 && args.vocab_size <= INT32_MAX, "V is ", args.vocab_size,
              ", expected 1 <= V <= ", INT32_MAX);
  expect.that(args.num_rows <= 1 || args.stride >= args.vocab_size, "logits has a row stride of ", args.stride,
              ", expected at least V = ", args.vocab_size);
  expect.pointer("logits", args.logits, args.num_rows);
  expect.pointer("rows", args.rows, args.num_rows);
  expect.pointer("results", args.results, args.num_rows);
  for (int64_t r = 0; r < args.num_rows; ++r) check_sample_row(expect, args.rows[r], r, args.vocab_size);
}

void check(const CopyPagesArgs& args) {
  const Expect expect("copy_pages");
  expect.kv(args.kv);
  expect.that(args.from.size() == args.to.size(), "from has ", args.from.size(), " pages and to has ", args.to.size());
  const auto count = static_cast<int64_t>(args.from.size());
  expect.indices("from", args.from.data(), count, args.kv.num_pages);
  expect.indices("to", args.to.data(), count, args.kv.num_pages);
  // Pages are copied in any order: a page may be written once, and not be read as well.
  std::vector<int32_t> from(args.from.begin(), args.from.end());
  std::vector<int32_t> to(args.to.begin(), args.to.end());
  std::ranges::sort(from);
  std::ranges::sort(to);
  expect.that(std::ranges::adjacent_find(to) == to.end(), "to names a page twice");
  std::vector<int32_t> both;
  std::ranges::set_intersection(from, to, std::back_inserter(both));
  expect.that(both.empty(), "page ", both.empty() ? 0 : both.front(), " is in from and in to");
}

void check(const WeightDesc& desc) {
  const Expect expect("PackedWeight");
  expect.positive("N", desc.n);
  expect.positive("K", desc.k);
  expect.positive("X", desc.num_experts);
  checked_mul(checked_mul(checked_mul(desc.n, desc.k, "PackedWeight"), desc.num_experts, "PackedWeight"), 8,
              "PackedWeight");
  if (!has_codes(desc.format)) return;
  expect.that(desc.group == 0 || desc.group == 32 || desc.group == 64 || desc.group == 128, "group is ", desc.group,
              ", expected 32, 64, 128, or 0 for whole rows");
  if (desc.format == WeightFormat::kE4M3) {
    expect.that(!desc.has_zeros, "zeros are not used by fp8");
    expect.that(desc.act == ActMode::kBF16 || desc.act == ActMode::kF32 || desc.act == ActMode::kE4M3, "act is ",
                name_of(desc.act), ", expected bf16, f32 or fp8 for fp8");
  } else {
    expect.that(desc.act != ActMode::kE4M3, "act is fp8, which is for weights of fp8");
  }
  if (desc.group == 0 || desc.format == WeightFormat::kE4M3) {
    expect.that(desc.scale_dtype == DType::kF32, "scale_dtype is ", name_of(desc.scale_dtype),
                ", expected float32 for scales of whole rows and of fp8");
  } else {
    expect.that(desc.scale_dtype == DType::kF16 || desc.scale_dtype == DType::kBF16, "scale_dtype is ",
                name_of(desc.scale_dtype), ", expected float16 or bfloat16 for scales of groups");
  }
}

void check(const WeightDesc& desc, const CodeSlice& slice) {
  const Expect expect("PackedWeight");
  const int64_t num_scales = checked_mul(slice.num_rows, desc.groups(), "PackedWeight");
  expect.not_negative("num_rows", slice.num_rows);
  expect.that(slice.row_begin >= 0 && slice.row_begin <= desc.n - slice.num_rows, "rows [", slice.row_begin, ", ",
              slice.row_begin + slice.num_rows, ") are outside [0, ", desc.n, ")");
  expect.index("expert", 0, slice.expert, desc.num_experts);
  expect.pointer("codes", slice.codes, checked_mul(slice.num_rows, desc.k, "PackedWeight"));
  expect.pointer("scales", slice.scales, num_scales);
  expect.that((slice.zeros != nullptr) == desc.has_zeros, desc.has_zeros ? "zeros are missing" : "zeros are not used");
  const bool is_int4 = desc.format == WeightFormat::kInt4;
  if (is_int4) {
    const std::span<const uint8_t> codes(slice.codes, static_cast<std::size_t>(slice.num_rows * desc.k));
    uint8_t bits = 0;  // a loop of vectors: whole checkpoints come through here
    for (const uint8_t code : codes) bits |= code;
    if (bits > 15) {
      const auto bad = std::ranges::find_if(codes, [](uint8_t code) { return code > 15; }) - codes.begin();
      expect.that(false, "codes[", bad / desc.k, ", ", bad % desc.k, "] is ", int{slice.codes[bad]},
                  ", expected 0 to 15 for int4");
    }
  }
  if (desc.format == WeightFormat::kE4M3) {
    const int64_t count = slice.num_rows * desc.k;
    const uint8_t* bad =
        std::find_if(slice.codes, slice.codes + count, [](uint8_t code) { return (code & 0x7f) == 0x7f; });
    expect.that(bad == slice.codes + count, "codes[", (bad - slice.codes) / desc.k, ", ", (bad - slice.codes) % desc.k,
                "] is NaN");
  }
  for (int64_t i = 0; i < num_scales; ++i) {
    const float scale = slice.scales[i];
    const bool is_exact = with_float_dtype(
        desc.scale_dtype, [&]<class T>(T) { return std::isnan(scale) || to_float(from_float<T>(scale)) == scale; });
    expect.that(is_exact, "scales[", i / desc.groups(), ", ", i % desc.groups(), "] is ", scale, ", which is not a ",
                name_of(desc.scale_dtype), "; round scales before codes are computed");
    if (desc.has_zeros && is_int4) {
      expect.that(slice.zeros[i] <= 16, "zeros[", i / desc.groups(), ", ", i % desc.groups(), "] is ",
                  int{slice.zeros[i]}, ", expected 0 to 16 for int4");
    }
  }
}

void check(const KvSpec& spec) {
  const Expect expect("KvCache");
  expect.positive("num_kv_heads", spec.num_kv_heads);
  expect.positive("head_dim", spec.head_dim);
  expect.that(
      spec.dtype == DType::kF32 || spec.dtype == DType::kBF16 || spec.dtype == DType::kF16 || has_kv_scales(spec.dtype),
      "dtype is ", name_of(spec.dtype), ", expected float32, bfloat16, float16, int8 or fp8");
  checked_mul(checked_mul(spec.num_kv_heads, spec.head_dim, "KvCache"), int64_t{1} << 12, "KvCache");
}

}  // namespace fastllm
