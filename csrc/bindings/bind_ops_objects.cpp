// fastllm._core.OpsBackend, OpsWeight, OpsKvCache and OpsSampleRow.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <utility>

#include "bindings/backends.h"
#include "bindings/bindings.h"
#include "bindings/ops_objects.h"
#include "core/checked.h"
#include "core/cpu_info.h"
#include "ops/check.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastllm {

OpsBackend::OpsBackend(const std::string& device, int num_threads) : backend_(make_backend(device, num_threads)) {}

void OpsBackend::grow(const OpLimits& need) {
  OpLimits grown = limits_;
  bool has_grown = false;
  const auto raise = [&](int64_t& have, int64_t want) {
    has_grown |= want > have;
    have = std::max(have, want);
  };
  raise(grown.max_tokens, need.max_tokens);
  raise(grown.max_seqs, need.max_seqs);
  raise(grown.max_logit_rows, need.max_logit_rows);
  raise(grown.max_features, need.max_features);
  raise(grown.num_heads, need.num_heads);
  raise(grown.num_kv_heads, need.num_kv_heads);
  raise(grown.head_dim, need.head_dim);
  raise(grown.vocab_size, need.vocab_size);
  raise(grown.num_experts, need.num_experts);
  raise(grown.experts_per_token, need.experts_per_token);
  raise(grown.moe_features, need.moe_features);
  if (!has_grown) return;
  limits_ = {};  // whatever reserve() leaves behind if it throws, the next call reserves anew
  backend_->reserve(grown);
  limits_ = grown;
}

OpsWeight::OpsWeight(Owner backend, const InArray& a, const std::optional<std::string>& dtype)
    : owner(std::move(backend)) {
  expect_on_host(a, "PackedWeight: the array");
  const DType source = dtype_of(a, "PackedWeight: the array");
  if (size_of(source) > 4 || source == DType::kI32 || source == DType::kU8) {
    fail(ErrorKind::kInvalidRequest, "PackedWeight: the array is ", name_of(source), ", expected a float type");
  }
  take_shape(a, "the array");
  weight.desc.format = format_of(dtype.has_value() ? parse_float_dtype(*dtype) : source);
  check(weight.desc);
  owner->run({}, CallArrays(0), [&](Backend& b, OnDevice&) {
    allocate(b);
    const std::size_t first = a.ndim() - 2;
    for (int64_t x = 0; x < weight.desc.num_experts; ++x) {
      const int64_t offset = first == 1 ? x * a.stride(0) * size_of(source) : 0;
      b.pack(weight, {static_cast<const std::byte*>(a.data()) + offset, source, a.stride(first), a.stride(first + 1), 0,
                      weight.desc.n, x});
    }
  });
}

OpsWeight::OpsWeight(Owner backend, const InArray& codes, const InArray& scales, const std::optional<InArray>& zeros,
                     int64_t group, const std::string& format, const std::string& act, const std::string& scale_dtype)
    : owner(std::move(backend)) {
  take_shape(codes, "codes");
  WeightDesc& desc = weight.desc;
  desc.format = parse_code_format(format);
  desc.group = group;
  desc.scale_dtype = parse_float_dtype(scale_dtype);
  desc.has_zeros = zeros.has_value();
  desc.act = parse_act_mode(act);
  check(desc);
  const int64_t num_codes = desc.n * desc.k;
  const int64_t num_scales = desc.n * desc.groups();
  const uint8_t* code = as_bytes(codes, "PackedWeight: codes", desc.num_experts * num_codes);
  expect_on_host(scales, "PackedWeight: scales");
  const float* scale = as_floats(scales, "PackedWeight: scales", desc.num_experts * num_scales);
  const uint8_t* zero =
      zeros.has_value() ? as_bytes(*zeros, "PackedWeight: zeros", desc.num_experts * num_scales) : nullptr;
  owner->run({}, CallArrays(0), [&](Backend& b, OnDevice&) {
    allocate(b);
    for (int64_t x = 0; x < desc.num_experts; ++x) {
      const CodeSlice slice{code + x * num_codes,
                            scale + x * num_scales,
                            zero != nullptr ? zero + x * num_scales : nullptr,
                            0,
                            desc.n,
                            x};
      check(desc, slice);
      b.pack_codes(weight, slice);
    }
  });
}

void OpsWeight::take_shape(const InArray& a, const char* name) {
  if (a.ndim() != 2 && a.ndim() != 3) {
    fail(ErrorKind::kInvalidRequest, "PackedWeight: ", name, " has ", a.ndim(),
         " dimensions, expected [N, K] or [X, N, K]");
  }
  const std::size_t first = a.ndim() - 2;
  weight.desc.n = static_cast<int64_t>(a.shape(first));
  weight.desc.k = static_cast<int64_t>(a.shape(first + 1));
  weight.desc.num_experts = first == 1 ? static_cast<int64_t>(a.shape(0)) : 1;
}

void OpsWeight::allocate(Backend& backend) {
  memory = backend.allocate(backend.packed_bytes(weight.desc), "PackedWeight", Contents::kZero);
  weight.data = memory.data();
}

OpsKvCache::OpsKvCache(Owner backend, int64_t num_pages, int64_t num_kv_heads, int64_t head_dim,
                       const std::string& dtype)
    : owner(std::move(backend)) {
  layer.spec = {num_kv_heads, head_dim, parse_kv_dtype(dtype)};
  check(layer.spec);
  if (num_pages < 0) fail(ErrorKind::kInvalidRequest, "KvCache: num_pages is ", num_pages, ", expected at least 0");
  layer.page_bytes = owner->get().kv_page_bytes(layer.spec);
  layer.num_pages = num_pages;
  const int64_t bytes = checked_mul(layer.page_bytes, num_pages, "KvCache");
  owner->run({}, CallArrays(0), [&](Backend& b, OnDevice&) { memory = b.allocate(bytes, "KvCache", Contents::kZero); });
  layer.data = memory.data();
}

nb::bytes OpsKvCache::page_bytes(int64_t page) const {
  if (page < 0 || page >= layer.num_pages) {
    fail(ErrorKind::kInvalidRequest, "KvCache: page ", page, " is not one of ", layer.num_pages);
  }
  std::vector<std::byte> bytes(static_cast<std::size_t>(layer.page_bytes));
  owner->run({}, CallArrays(0), [&](Backend& b, OnDevice&) {
    b.download(bytes.data(), layer.data + page * layer.page_bytes, layer.page_bytes);
  });
  return nb::bytes(bytes.data(), bytes.size());
}

void expect_same(const Owner& self, const Owner& other, const char* what) {
  if (self != other) {
    fail(ErrorKind::kInvalidRequest, what, " was made for another backend object (", other->get().name(),
         "); its layout belongs to that one");
  }
}

void bind_ops_objects(nb::module_& m) {
  m.def(
      "cpu_isa_levels",
      [] {
        std::vector<std::string> names;
        for (const CpuIsa isa : supported_isas()) names.emplace_back(name_of(isa));
        return names;
      },
      "Names of the instruction set levels of this machine, lowest first; each is a device \"cpu:<name>\".");

  nb::class_<OpsWeight>(m, "OpsWeight")
      .def(nb::init<Owner, const InArray&, const std::optional<std::string>&>(), "backend"_a, "array"_a,
           "dtype"_a = nb::none())
      .def(nb::init<Owner, const InArray&, const InArray&, const std::optional<InArray>&, int64_t, const std::string&,
                    const std::string&, const std::string&>(),
           "backend"_a, "codes"_a, "scales"_a, "zeros"_a.none(), nb::kw_only(), "group"_a, "format"_a, "act"_a,
           "scale_dtype"_a)
      .def_prop_ro("shape",
                   [](const OpsWeight& w) {
                     return std::make_tuple(w.weight.desc.num_experts, w.weight.desc.n, w.weight.desc.k);
                   })
      .def_prop_ro("format", [](const OpsWeight& w) { return name_of(w.weight.desc.format); })
      .def_prop_ro("nbytes", [](const OpsWeight& w) { return w.memory.size(); });

  nb::class_<OpsKvCache>(m, "OpsKvCache")
      .def(nb::init<Owner, int64_t, int64_t, int64_t, const std::string&>(), "backend"_a, "num_pages"_a,
           "num_kv_heads"_a, "head_dim"_a, "dtype"_a)
      .def_prop_ro("num_pages", [](const OpsKvCache& kv) { return kv.layer.num_pages; })
      .def_prop_ro("nbytes", [](const OpsKvCache& kv) { return kv.memory.size(); })
      .def("page_bytes", &OpsKvCache::page_bytes, "page"_a);

  nb::class_<OpsSampleRow>(m, "OpsSampleRow")
      .def(
          "__init__",
          [](OpsSampleRow* self, float temperature, int32_t top_k, float top_p, float min_p, float repetition_penalty,
             float frequency_penalty, float presence_penalty, uint64_t seed, uint64_t sequence, uint64_t position,
             const std::vector<std::tuple<int32_t, int32_t, bool>>& counts,
             const std::vector<std::pair<int32_t, float>>& bias, std::vector<int32_t> allowed,
             std::vector<uint32_t> mask, bool wants_logprob, int32_t num_top, int32_t forced_token) {
            new (self) OpsSampleRow{};
            self->row = {temperature,
                         top_k,
                         top_p,
                         min_p,
                         repetition_penalty,
                         frequency_penalty,
                         presence_penalty,
                         seed,
                         sequence,
                         position,
                         {},
                         {},
                         {},
                         {},
                         wants_logprob,
                         num_top,
                         nullptr,
                         nullptr,
                         forced_token};
            for (const auto& [token, in_output, in_prompt] : counts)
              self->counts.push_back({token, in_output, in_prompt});
            for (const auto& [token, value] : bias) self->bias.push_back({token, value});
            self->allowed = std::move(allowed);
            self->mask = std::move(mask);
          },
          nb::kw_only(), "temperature"_a, "top_k"_a, "top_p"_a, "min_p"_a, "repetition_penalty"_a,
          "frequency_penalty"_a, "presence_penalty"_a, "seed"_a, "sequence"_a, "position"_a, "counts"_a, "bias"_a,
          "allowed"_a, "mask"_a, "wants_logprob"_a, "num_top"_a, "forced_token"_a);

  nb::class_<OpsBackend>(m, "OpsBackend")
      .def(nb::init<const std::string&, int>(), "device"_a, "num_threads"_a = 0)
      .def_prop_ro("name", [](OpsBackend& b) { return b.get().name(); })
      .def_prop_ro("num_threads", [](OpsBackend& b) { return b.get().num_threads(); })
      .def_prop_ro("page_size", [](OpsBackend& b) { return b.get().page_size(); })
      .def("empty", [](OpsBackend& b, const std::vector<int64_t>& shape,
                       const std::string& dtype) { return empty_array(b.get(), shape, dtype); })
      .def("copy", [](OpsBackend& b, CallArrays& arrays, const InArray& from, const OutArray& to) {
        b.run({}, arrays, [&](Backend& backend, OnDevice&) { copy_array(backend, from, to); });
      });
  nb::class_<CallArrays>(m, "OpsCallArrays").def(nb::init<uintptr_t>(), "stream"_a);
}

}  // namespace fastllm
