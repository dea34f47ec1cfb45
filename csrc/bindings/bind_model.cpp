// Model: spec + backend + weights; fill them, then start an engine or a scorer. Also the limits of the machine.
#include <nanobind/ndarray.h>
#include <nanobind/stl/map.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "bindings/backends.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "core/checked.h"
#include "core/checksum.h"
#include "core/thread_pool.h"
#include "cpu/probe.h"
#include "engine/engine.h"
#include "engine/model_executor.h"
#include "engine/scorer.h"
#include "model/layout_fingerprint.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastllm {
namespace {

using Codes = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Scales = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Bytes = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>;
using Formats = std::map<std::string, MatrixFormat>;

ModelWeights& weights_of(Model& model) {
  if (model.weights == nullptr) fail(ErrorKind::kInternal, "Model.allocate_weights() was not called");
  return *model.weights;
}

void fill_matrix(Model& model, const std::string& name, uintptr_t address, const std::string& dtype, int64_t num_rows,
                 int64_t num_cols, int64_t row_stride, int64_t col_stride, int64_t row_begin, int64_t expert) {
  const WeightSlice slice{reinterpret_cast<const void*>(address),
                          parse_float_dtype(dtype),
                          row_stride,
                          col_stride,
                          row_begin,
                          num_rows,
                          expert};
  weights_of(model).fill_matrix(name, slice, num_cols);
}

void fill_codes(Model& model, const std::string& name, const Codes& codes, const Scales& scales,
                const std::optional<Codes>& zeros, int64_t row_begin, int64_t expert) {
  const auto rows = static_cast<int64_t>(codes.shape(0));
  const auto cols = static_cast<int64_t>(codes.shape(1));
  ModelWeights& weights = weights_of(model);
  const PackedWeight* weight = weights.find_matrix(name);
  const int64_t groups = weight != nullptr ? weight->desc.groups() : 0;
  const auto is_per_group = [&](const auto& a) {
    return static_cast<int64_t>(a.shape(0)) == rows && static_cast<int64_t>(a.shape(1)) == groups;
  };
  if (!is_per_group(scales) || (zeros && !is_per_group(*zeros))) {
    fail(ErrorKind::kInternal, name, ": scales and zeros must be ", rows, " x ", groups);
  }
  const CodeSlice slice{codes.data(), scales.data(), zeros ? zeros->data() : nullptr, row_begin, rows, expert};
  const GilRelease release;
  weights.fill_codes(name, slice, cols);
}

nb::dict matrix_bytes(Model& model) {
  nb::dict out;
  for (const auto& [name, slot] : weights_of(model).matrices()) out[name.c_str()] = slot.bytes;
  return out;
}

// The packed weights as they lie in memory, writable.
Bytes weight_memory(const nb::object& self) {
  Model& model = *nb::cast<Model*>(self);
  ModelWeights& weights = weights_of(model);
  if (!model.backend->shares_host_memory()) {
    fail(ErrorKind::kInternal, "the weights lie in memory of ", model.backend->name(),
         ", which cannot be read in place");
  }
  const std::span<std::byte> memory = weights.memory();
  return Bytes(memory.data(), {memory.size()}, self);
}

void fill_vector(Model& model, const std::string& name, uintptr_t address, const std::string& dtype, int64_t count,
                 int64_t stride, int64_t offset) {
  const WeightSlice slice{reinterpret_cast<const void*>(address), parse_float_dtype(dtype), 0, stride, 0, 1, 0};
  weights_of(model).fill_vector(name, slice, offset, count);
}

StepLimits limits_of(const EngineConfig& config) {
  return {config.max_num_batched_tokens, config.max_num_seqs, config.max_logit_rows,
          ceil_div(max_sequence_len(config), config.page_size)};
}

std::unique_ptr<Engine> start(const std::shared_ptr<Model>& model, EngineConfig config, const std::string& kv_dtype) {
  config.page_size = model->backend->page_size();
  config.vocab_size = model->spec.vocab_size;
  config.hidden_size = model->spec.hidden_size;
  check(config);
  auto executor = std::make_unique<ModelExecutor>(model, limits_of(config), config.num_pages, parse_kv_dtype(kv_dtype));
  return std::make_unique<Engine>(config, std::move(executor));
}

using Logits = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

void append(Scorer& scorer, const std::vector<int64_t>& token_ids, const Logits& logits) {
  const auto num_rows = static_cast<int64_t>(logits.shape(0));
  const int64_t first_row = static_cast<int64_t>(token_ids.size()) - num_rows;
  if (first_row < 0 || std::cmp_not_equal(logits.shape(1), scorer.vocab_size())) {
    fail(ErrorKind::kInvalidRequest, "logits has shape [", num_rows, ", ", logits.shape(1), "], expected [at most ",
         token_ids.size(), ", ", scorer.vocab_size(), "]");
  }
  const GilRelease release;
  scorer.append(token_ids, first_row, logits.data());
}

nb::dict measure_limits(int num_threads, const std::optional<std::string>& isa_name) {
  double read = 0.0;
  double float32 = 0.0;
  double bfloat16 = 0.0;
  double int8 = 0.0;
  {
    const GilRelease release;
    ThreadPool pool(num_threads);
    const CpuIsa isa = choose_isa(isa_name ? isa_name->c_str() : nullptr);
    read = measure_read_bandwidth(pool);
    float32 = measure_peak_ops(pool, isa, DType::kF32);
    bfloat16 = measure_peak_ops(pool, isa, DType::kBF16);
    int8 = measure_peak_ops(pool, isa, DType::kU8);
  }
  nb::dict out;
  out["read_bytes_per_s"] = read;
  out["float32_flops"] = float32;
  out["bfloat16_flops"] = bfloat16;
  out["int8_ops"] = int8;
  return out;
}

}  // namespace

void bind_model(nb::module_& m) {
  using Release = nb::call_guard<GilRelease>;
  nb::class_<MatrixFormat>(m, "MatrixFormat", "How one matrix of codes is held; see csrc/ops/weights.h.")
      .def(nb::new_([](const std::string& format, int64_t group, const std::string& scale_dtype, bool has_zeros,
                       const std::string& act) {
             return MatrixFormat{parse_code_format(format), group, parse_float_dtype(scale_dtype), has_zeros,
                                 parse_act_mode(act)};
           }),
           nb::kw_only(), "format"_a, "group"_a, "scale_dtype"_a, "has_zeros"_a, "act"_a);
  m.def(
      "matrix_shapes",
      [](const ModelSpec& spec) {
        nb::list out;
        for (const MatrixShape& s : matrix_shapes(spec)) {
          out.append(nb::make_tuple(s.name, s.n, s.k, s.num_experts, s.is_fixed));
        }
        return out;
      },
      "spec"_a, "The matrices of a model: (slot, N, K, experts, whether it is always float32).");
  m.def(
      "checksum",
      [](const nb::ndarray<const uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>& data) {
        const std::span<const std::byte> bytes(reinterpret_cast<const std::byte*>(data.data()), data.size());
        const GilRelease release;
        return checksum(bytes);
      },
      "data"_a, "64 bits that change when the bytes do; without the GIL.");
  nb::class_<Model>(m, "Model", "A model on a device: plan its memory, fill its weights, start engines.")
      .def(nb::new_([](const ModelSpec& spec, const std::string& device, int num_threads, const std::string& dtype,
                       Formats formats) {
             WeightPlan plan{format_of(parse_float_dtype(dtype)), std::move(formats)};
             return std::make_shared<Model>(spec, make_backend(device, num_threads), std::move(plan));
           }),
           "spec"_a, nb::kw_only(), "device"_a, "num_threads"_a, "dtype"_a, "formats"_a,
           "`dtype` is the type of the matrices that `formats` does not name.")
      .def_prop_ro("spec", [](const Model& self) { return self.spec; })
      .def_prop_ro("backend_name", [](const Model& self) { return std::string(self.backend->name()); })
      .def_prop_ro("num_threads", [](const Model& self) { return self.backend->num_threads(); })
      .def_prop_ro("page_size", [](const Model& self) { return self.backend->page_size(); })
      .def_prop_ro(
          "shares_host_memory", [](const Model& self) { return self.backend->shares_host_memory(); },
          "Whether the device's memory is the host's.")
      .def_prop_ro(
          "device_free_bytes", [](const Model& self) { return self.backend->free_bytes(); },
          "Free memory of the device; 0 where it is the host's.")
      .def_prop_ro(
          "num_graphs", [](const Model& self) { return self.backend->num_graphs(); },
          "Recorded steps that the device keeps now; 0 where it has none.")
      .def("weight_bytes", &Model::weight_bytes)
      .def(
          "step_bytes",
          [](const Model& self, int64_t max_tokens, int64_t max_seqs, int64_t max_logit_rows,
             int64_t max_pages_per_seq) {
            return self.step_bytes({max_tokens, max_seqs, max_logit_rows, max_pages_per_seq});
          },
          nb::kw_only(), "max_tokens"_a, "max_seqs"_a, "max_logit_rows"_a, "max_pages_per_seq"_a)
      .def(
          "kv_page_bytes",
          [](const Model& self, const std::string& dtype) { return self.kv_page_bytes(parse_kv_dtype(dtype)); },
          "kv_dtype"_a)
      .def("allocate_weights", &Model::allocate_weights, Release())
      .def("fill_matrix", &fill_matrix, nb::kw_only(), "name"_a, "address"_a, "dtype"_a, "num_rows"_a, "num_cols"_a,
           "row_stride"_a, "col_stride"_a, "row_begin"_a, "expert"_a, Release())
      .def("fill_codes", &fill_codes, nb::kw_only(), "name"_a, "codes"_a, "scales"_a, "zeros"_a.none(), "row_begin"_a,
           "expert"_a, "Rows of an integer matrix: codes [R, K], scales [R, groups], zeros [R, groups] or None.")
      .def("fill_vector", &fill_vector, nb::kw_only(), "name"_a, "address"_a, "dtype"_a, "count"_a, "stride"_a,
           "offset"_a, Release())
      .def(
          "fill_random", [](Model& self, uint64_t seed) { weights_of(self).fill_random(seed); }, "seed"_a, Release())
      .def("unfilled", [](Model& self) { return weights_of(self).unfilled(); })
      .def(
          "measure_read_bandwidth",
          [](Model& self, int num_threads) {
            if (!self.backend->shares_host_memory()) return 0.0;
            ThreadPool pool(num_threads);
            return measure_read_bandwidth(pool, weights_of(self).memory());
          },
          "num_threads"_a, Release(), "Bytes per second at which the weights are read; 0: not known.")
      .def("matrix_bytes", &matrix_bytes, "Bytes of each matrix as it is held.")
      .def("weight_memory", &weight_memory,
           "All weights as they lie in memory: bytes that a packed cache keeps. Only with shares_host_memory.")
      .def(
          "mark_filled", [](Model& self) { weights_of(self).mark_filled(); },
          "After weight_memory() was written whole.")
      .def(
          "layout_fingerprint", [](Model& self) { return layout_fingerprint(self.spec, self.plan, *self.backend); },
          Release(), "Models with the same number hold the same weights as the same bytes.")
      .def(
          "start",
          [](const std::shared_ptr<Model>& self, const EngineConfig& config, const std::string& kv_dtype) {
            return start(self, config, kv_dtype);
          },
          "config"_a, "kv_dtype"_a, Release());
  nb::class_<Scorer>(m, "Scorer", "Whole rows of logits of one sequence at a time, for evaluation.")
      .def(nb::new_(
               [](const std::shared_ptr<Model>& model, int64_t max_tokens, int64_t chunk, const std::string& kv_dtype) {
                 return std::make_unique<Scorer>(model, max_tokens, chunk, parse_kv_dtype(kv_dtype));
               }),
           "model"_a, nb::kw_only(), "max_tokens"_a, "chunk"_a, "kv_dtype"_a)
      .def("append", &append, "token_ids"_a, "logits"_a,
           "Appends tokens to the sequence; logits [rows, V] gets what follows each of the last `rows` of them.")
      .def("clear", &Scorer::clear, "Begins the next sequence.")
      .def_prop_ro("num_tokens", &Scorer::num_tokens)
      .def_prop_ro("vocab_size", &Scorer::vocab_size);
  m.def(
      "resolve_device", [](const std::string& device) { return std::string(resolve_device(device)); }, "device"_a,
      "The device that \"auto\" stands for on this machine; any other string as it is.");
  m.def(
      "measure_limits", &measure_limits, "num_threads"_a, "isa"_a = nb::none(),
      "Read bandwidth (bytes/s) and peak arithmetic (operations/s) of this processor at a level, by default the best, "
      "measured now.");
  m.def("default_num_threads", &default_num_threads,
        "Threads that this process should use: affinity, cgroup quota, physical cores.");
}

}  // namespace fastllm
