// fastllm._core.ops_*: every operation of ops/ops.h, written into arrays of the caller. The Python signatures with
// shapes and defaults are in fastllm/ops.py.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "bindings/bindings.h"
#include "bindings/ops_objects.h"
#include "core/checked.h"
#include "ops/check.h"

namespace nb = nanobind;

namespace fastllm {
namespace {

OpLimits token_limits(int64_t num_tokens, int64_t num_features = 0) {
  OpLimits limits;
  limits.max_tokens = num_tokens;
  limits.max_features = num_features;
  return limits;
}

void embed(const Owner& self, CallArrays& arrays, const InArray& ids, const OpsWeight& table, const OutArray& out,
           float scale) {
  expect_same(self, table.owner, "embed: table");
  const std::vector<int32_t> tokens = as_integers<int32_t>(ids, "embed: ids");
  const EmbedArgs args{tokens.data(), static_cast<int64_t>(tokens.size()), &table.weight, scale,
                       arrays.mat(out, "embed: out")};
  check(args);
  self->run(token_limits(args.num_tokens, args.out.cols), arrays, [&](Backend& b, OnDevice& on) {
    EmbedArgs d = args;
    d.ids = on.indices(args.ids, args.num_tokens);
    d.out = on.out(args.out);
    b.embed(d);
  });
}

void rms_norm(const Owner& self, CallArrays& arrays, const InArray& x, const InArray& weight, const OutArray& y,
              const std::optional<OutArray>& residual, float eps, float weight_offset,
              const std::optional<InArray>& row_ids) {
  RmsNormArgs args;
  args.x = arrays.mat(x, "rms_norm: x");
  args.residual = arrays.mat(residual, "rms_norm: residual");
  args.group = static_cast<int64_t>(weight.size());
  args.weight = arrays.floats(weight, "rms_norm: weight", args.group);
  args.eps = eps;
  args.weight_offset = weight_offset;
  args.y = arrays.mat(y, "rms_norm: y");
  std::vector<int32_t> rows;
  if (row_ids.has_value()) {
    rows = as_integers<int32_t>(*row_ids, "rms_norm: row_ids");
    rows.reserve(1);  // an empty list is a list, and its pointer says so
    args.row_ids = rows.data();
  }
  check(args, static_cast<int64_t>(rows.size()));
  self->run(token_limits(args.x.rows, args.x.cols), arrays, [&](Backend& b, OnDevice& on) {
    RmsNormArgs d = args;
    d.x = on.in(args.x);
    d.residual = on.inout(args.residual);
    d.weight = on.in(args.weight, args.group);
    d.row_ids = on.indices(args.row_ids, static_cast<int64_t>(rows.size()));
    d.y = on.out(args.y);
    b.rms_norm(d);
  });
}

void linear(const Owner& self, CallArrays& arrays, const InArray& x, const OpsWeight& weight, const OutArray& y,
            const std::optional<InArray>& bias) {
  expect_same(self, weight.owner, "linear: weight");
  const LinearArgs args{arrays.mat(x, "linear: x"), &weight.weight,
                        arrays.floats(bias, "linear: bias", weight.weight.desc.n), arrays.mat(y, "linear: y")};
  check(args);
  self->run(token_limits(args.x.rows, std::max(args.x.cols, args.y.cols)), arrays, [&](Backend& b, OnDevice& on) {
    b.linear({on.in(args.x), args.weight, on.in(args.bias, args.weight->desc.n), on.out(args.y)});
  });
}

void rope_table(const Owner& self, CallArrays& arrays, const InArray& positions, const InArray& inv_freq,
                const OutArray& cos, const OutArray& sin, float scale) {
  const std::vector<int32_t> at = as_integers<int32_t>(positions, "rope_table: positions");
  RopeTableArgs args;
  args.positions = at.data();
  args.num_tokens = static_cast<int64_t>(at.size());
  args.num_freqs = static_cast<int64_t>(inv_freq.size());
  args.inv_freq = arrays.floats(inv_freq, "rope_table: inv_freq", args.num_freqs);
  args.scale = scale;
  const int64_t count = checked_mul(args.num_tokens, args.num_freqs, "rope_table");
  args.cos = arrays.floats(cos, "rope_table: cos", count);
  args.sin = arrays.floats(sin, "rope_table: sin", count);
  check(args);
  self->run(token_limits(args.num_tokens), arrays, [&](Backend& b, OnDevice& on) {
    RopeTableArgs d = args;
    d.positions = on.indices(args.positions, args.num_tokens);
    d.inv_freq = on.in(args.inv_freq, args.num_freqs);
    d.cos = on.out(args.cos, count);
    d.sin = on.out(args.sin, count);
    b.rope_table(d);
  });
}

OpLimits attention_limits(const Mat& q, const KvLayer& kv, int64_t num_seqs) {
  OpLimits limits = token_limits(q.rows, q.cols);
  limits.max_seqs = num_seqs;
  limits.num_heads = q.cols / kv.spec.head_dim;
  limits.num_kv_heads = kv.spec.num_kv_heads;
  limits.head_dim = kv.spec.head_dim;
  return limits;
}

void rope_and_store(const Owner& self, CallArrays& arrays, const OutArray& q, const OutArray& k, const InArray& v,
                    const std::optional<InArray>& cos, const std::optional<InArray>& sin, const InArray& slots,
                    const OpsKvCache& kv) {
  expect_same(self, kv.owner, "rope_and_store: kv");
  const std::vector<int64_t> slot_ids = as_integers<int64_t>(slots, "rope_and_store: slots");
  RopeAndStoreArgs args;
  args.q = arrays.mat(q, "rope_and_store: q");
  args.k = arrays.mat(k, "rope_and_store: k");
  args.v = arrays.mat(v, "rope_and_store: v");
  args.num_freqs = cos.has_value() && cos->ndim() == 2 ? static_cast<int64_t>(cos->shape(1)) : 0;
  args.cos = arrays.floats(cos, "rope_and_store: cos", args.q.rows * args.num_freqs);
  args.sin = arrays.floats(sin, "rope_and_store: sin", args.q.rows * args.num_freqs);
  args.slots = slot_ids.data();
  args.kv = kv.layer;
  if (static_cast<int64_t>(slot_ids.size()) != args.q.rows) {
    fail(ErrorKind::kInvalidRequest, "rope_and_store: slots has ", slot_ids.size(),
         " entries, expected T = ", args.q.rows);
  }
  check(args, self->get().page_size());
  self->run(attention_limits(args.q, args.kv, 0), arrays, [&](Backend& b, OnDevice& on) {
    RopeAndStoreArgs d = args;
    d.q = on.inout(args.q);
    d.k = on.inout(args.k);
    d.v = on.in(args.v);
    d.cos = on.in(args.cos, args.q.rows * args.num_freqs);
    d.sin = on.in(args.sin, args.q.rows * args.num_freqs);
    d.slots = on.indices(args.slots, args.q.rows);
    b.rope_and_store(d);
  });
}

void paged_attention(const Owner& self, CallArrays& arrays, const InArray& q, const OpsKvCache& kv,
                     const InArray& query_start, const InArray& context_len, const InArray& block_table,
                     const OutArray& out, float scale, int64_t window, float softcap,
                     const std::optional<InArray>& sinks) {
  expect_same(self, kv.owner, "paged_attention: kv");
  const auto starts = as_integers<int32_t>(query_start, "paged_attention: query_start");
  const auto lengths = as_integers<int32_t>(context_len, "paged_attention: context_len");
  const auto pages = as_integers<int32_t>(block_table, "paged_attention: block_table");
  PagedAttentionArgs args;
  args.q = arrays.mat(q, "paged_attention: q");
  args.num_heads = args.q.cols / kv.layer.spec.head_dim;
  args.kv = kv.layer;
  args.scale = scale;
  args.window = window;
  args.softcap = softcap;
  args.sinks = arrays.floats(sinks, "paged_attention: sinks", args.num_heads);
  args.out = arrays.mat(out, "paged_attention: out");
  const auto num_seqs = static_cast<int64_t>(lengths.size());
  if (static_cast<int64_t>(starts.size()) != num_seqs + 1) {
    fail(ErrorKind::kInvalidRequest, "paged_attention: query_start has ", starts.size(),
         " entries, expected S + 1 = ", num_seqs + 1);
  }
  if (block_table.ndim() != 2 || static_cast<int64_t>(block_table.shape(0)) != num_seqs) {
    fail(ErrorKind::kInvalidRequest, "paged_attention: block_table must be [S, pages] with S = ", num_seqs);
  }
  StepView step;
  step.num_tokens = args.q.rows;
  step.num_seqs = num_seqs;
  step.max_pages = static_cast<int64_t>(block_table.shape(1));
  step.max_context_len = num_seqs > 0 ? *std::ranges::max_element(lengths) : 0;
  step.query_start = starts.data();
  step.context_len = lengths.data();
  step.block_table = pages.data();
  // The new tokens are the last of their context. Ranges are only valid after check(); until then stay inside T.
  std::vector<int32_t> positions(static_cast<std::size_t>(step.num_tokens));
  for (std::size_t s = 0; s < lengths.size(); ++s) {
    for (int64_t t = std::max<int64_t>(0, starts[s]); t < std::min<int64_t>(starts[s + 1], step.num_tokens); ++t) {
      positions[static_cast<std::size_t>(t)] = static_cast<int32_t>(int64_t{lengths[s]} - starts[s + 1] + t);
    }
  }
  step.positions = positions.data();
  args.step = &step;
  check(args, self->get().page_size());
  self->run(attention_limits(args.q, args.kv, num_seqs), arrays, [&](Backend& b, OnDevice& on) {
    StepView device_step = step;
    device_step.query_start = on.indices(step.query_start, num_seqs + 1);
    device_step.context_len = on.indices(step.context_len, num_seqs);
    device_step.block_table = on.indices(step.block_table, num_seqs * step.max_pages);
    device_step.positions = on.indices(step.positions, step.num_tokens);
    PagedAttentionArgs d = args;
    d.step = &device_step;
    d.q = on.in(args.q);
    d.sinks = on.in(args.sinks, args.num_heads);
    d.out = on.out(args.out);
    b.paged_attention(d);
  });
}

void gated_activation(const Owner& self, CallArrays& arrays, const InArray& gate_up, const ActivationSpec& activation,
                      const OutArray& y) {
  const GatedActivationArgs args{arrays.mat(gate_up, "gated_activation: gate_up"), activation,
                                 arrays.mat(y, "gated_activation: y")};
  check(args);
  self->run(token_limits(args.y.rows, args.gate_up.cols), arrays, [&](Backend& b, OnDevice& on) {
    b.gated_activation({on.in(args.gate_up), args.activation, on.out(args.y)});
  });
}

OpLimits moe_limits(int64_t num_tokens, int64_t num_features, int64_t num_experts, int64_t top_k,
                    int64_t moe_features) {
  OpLimits limits = token_limits(num_tokens, num_features);
  limits.num_experts = num_experts;
  limits.experts_per_token = top_k;
  limits.moe_features = moe_features;
  return limits;
}

void moe_route(const Owner& self, CallArrays& arrays, const InArray& logits, int64_t top_k, RouteScore score,
               bool renormalize, float weight_scale, const OutArray& experts, const OutArray& weights) {
  MoeRouteArgs args;
  args.logits = arrays.mat(logits, "moe_route: logits");
  args.top_k = top_k;
  args.score = score;
  args.renormalize = renormalize;
  args.weight_scale = weight_scale;
  const int64_t count = checked_mul(args.logits.rows, top_k, "moe_route");
  args.experts = arrays.integers_out(experts, "moe_route: experts", count);
  args.weights = arrays.floats(weights, "moe_route: weights", count);
  check(args);
  self->run(moe_limits(args.logits.rows, 0, args.logits.cols, top_k, 0), arrays, [&](Backend& b, OnDevice& on) {
    MoeRouteArgs d = args;
    d.logits = on.in(args.logits);
    d.experts = on.out(args.experts, count);
    d.weights = on.out(args.weights, count);
    b.moe_route(d);
  });
}

void moe_ffn(const Owner& self, CallArrays& arrays, const InArray& x, const InArray& experts, const InArray& weights,
             const OpsWeight& gate_up, const OpsWeight& down, const ActivationSpec& activation, const OutArray& y,
             const std::optional<InArray>& gate_up_bias, const std::optional<InArray>& down_bias) {
  expect_same(self, gate_up.owner, "moe_ffn: gate_up");
  expect_same(self, down.owner, "moe_ffn: down");
  const auto chosen = as_integers<int32_t>(experts, "moe_ffn: experts");
  MoeFfnArgs args;
  args.x = arrays.mat(x, "moe_ffn: x");
  if (experts.ndim() != 2 || static_cast<int64_t>(experts.shape(0)) != args.x.rows) {
    fail(ErrorKind::kInvalidRequest, "moe_ffn: experts must be [T, k] with T = ", args.x.rows);
  }
  args.top_k = static_cast<int64_t>(experts.shape(1));
  args.experts = chosen.data();
  args.weights = arrays.floats(weights, "moe_ffn: weights", args.x.rows * args.top_k);
  args.gate_up = &gate_up.weight;
  args.down = &down.weight;
  const WeightDesc& desc = gate_up.weight.desc;
  args.gate_up_bias = arrays.floats(gate_up_bias, "moe_ffn: gate_up_bias", desc.num_experts * desc.n);
  args.down_bias = arrays.floats(down_bias, "moe_ffn: down_bias", desc.num_experts * down.weight.desc.n);
  args.activation = activation;
  args.y = arrays.mat(y, "moe_ffn: y");
  check(args);
  self->run(moe_limits(args.x.rows, std::max(desc.n, desc.k), desc.num_experts, args.top_k, desc.n / 2), arrays,
            [&](Backend& b, OnDevice& on) {
              const int64_t pairs = args.x.rows * args.top_k;
              MoeFfnArgs d = args;
              d.x = on.in(args.x);
              d.experts = on.indices(args.experts, pairs);
              d.weights = on.in(args.weights, pairs);
              d.gate_up_bias = on.in(args.gate_up_bias, desc.num_experts * desc.n);
              d.down_bias = on.in(args.down_bias, desc.num_experts * down.weight.desc.n);
              d.y = on.out(args.y);
              b.moe_ffn(d);
            });
}

void add(const Owner& self, CallArrays& arrays, const OutArray& residual, const InArray& x,
         const std::optional<InArray>& gate) {
  const AddArgs args{arrays.mat(residual, "add: residual"), arrays.mat(x, "add: x"), arrays.mat(gate, "add: gate")};
  check(args);
  self->run(token_limits(args.x.rows, args.x.cols), arrays,
            [&](Backend& b, OnDevice& on) { b.add({on.inout(args.residual), on.in(args.x), on.in(args.gate)}); });
}

void softcap(const Owner& self, CallArrays& arrays, const OutArray& x, float cap) {
  const SoftcapArgs args{arrays.mat(x, "softcap: x"), cap};
  check(args);
  self->run(token_limits(args.x.rows, args.x.cols), arrays,
            [&](Backend& b, OnDevice& on) { b.softcap({on.inout(args.x), args.cap}); });
}

void copy_pages(const Owner& self, CallArrays& arrays, const OpsKvCache& kv, const InArray& from, const InArray& to) {
  expect_same(self, kv.owner, "copy_pages: kv");
  const auto sources = as_integers<int32_t>(from, "copy_pages: from");
  const auto targets = as_integers<int32_t>(to, "copy_pages: to");
  const CopyPagesArgs args{kv.layer, sources, targets};
  check(args);
  self->run({}, arrays, [&](Backend& b, OnDevice&) { b.copy_pages(args); });
}

nb::list sample(const Owner& self, CallArrays& arrays, const OutArray& logits,
                const std::vector<OpsSampleRow*>& params) {
  const Mat mat = arrays.mat(logits, "sample: logits");
  if (mat.dtype != DType::kF32 || mat.rows != static_cast<int64_t>(params.size())) {
    fail(ErrorKind::kInvalidRequest, "sample: logits is ", name_of(mat.dtype), " with ", mat.rows,
         " rows, expected float32 with one row for each of ", params.size(), " parameter sets");
  }
  std::vector<OpsSampleRow> owned;
  for (const OpsSampleRow* p : params) owned.push_back(*p);
  std::vector<SampleRow> rows;
  for (OpsSampleRow& p : owned) {
    const int64_t num_top = std::clamp<int64_t>(p.row.num_top, 0, mat.cols);  // a larger one is refused by check()
    p.top_tokens.assign(static_cast<std::size_t>(num_top), -1);
    p.top_logprobs.assign(static_cast<std::size_t>(num_top), 0.0f);
    p.row.counts = p.counts;
    p.row.bias = p.bias;
    p.row.allowed = p.allowed;
    p.row.mask = p.mask;
    p.row.top_tokens = p.top_tokens.data();
    p.row.top_logprobs = p.top_logprobs.data();
    rows.push_back(p.row);
  }
  std::vector<SampleResult> results(rows.size());
  const SampleArgs args{static_cast<float*>(mat.data), mat.rows, mat.cols, mat.stride, rows.data(), results.data()};
  if (mat.rows > 0) check(args);
  OpLimits limits;
  limits.max_logit_rows = mat.rows;
  limits.vocab_size = mat.cols;
  if (mat.rows > 0)
    self->run(limits, arrays, [&](Backend& b, OnDevice& on) {
      SampleArgs d = args;
      const Mat on_device = on.in(mat);
      d.logits = static_cast<float*>(on_device.data);
      d.stride = on_device.stride;
      b.sample(d);
    });
  nb::list out;
  for (std::size_t r = 0; r < results.size(); ++r) {
    const SampleResult& x = results[r];
    out.append(nb::make_tuple(x.token, x.is_finite, x.logprob, x.rank, owned[r].top_tokens, owned[r].top_logprobs));
  }
  return out;
}

}  // namespace

void bind_ops(nb::module_& m) {
  m.def("ops_embed", &embed);
  m.def("ops_rms_norm", &rms_norm, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg(),
        nb::arg(), nb::arg().none());
  m.def("ops_linear", &linear, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none());
  m.def("ops_rope_table", &rope_table);
  m.def("ops_rope_and_store", &rope_and_store, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(),
        nb::arg().none(), nb::arg(), nb::arg());
  m.def("ops_paged_attention", &paged_attention, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
        nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none());
  m.def("ops_gated_activation", &gated_activation);
  m.def("ops_moe_route", &moe_route);
  m.def("ops_moe_ffn", &moe_ffn, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
        nb::arg(), nb::arg().none(), nb::arg().none());
  m.def("ops_add", &add, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none());
  m.def("ops_softcap", &softcap);
  m.def("ops_copy_pages", &copy_pages);
  m.def("ops_sample", &sample);
}

}  // namespace fastllm
