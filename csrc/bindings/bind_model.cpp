// Model: spec + backend + weights; fill them, then start an engine. Also the limits of the machine.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include "bindings/backends.h"
#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "core/thread_pool.h"
#include "cpu/probe.h"
#include "engine/engine.h"
#include "engine/model_executor.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastllm {
namespace {

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

void fill_vector(Model& model, const std::string& name, uintptr_t address, const std::string& dtype, int64_t count,
                 int64_t stride, int64_t offset) {
  const WeightSlice slice{reinterpret_cast<const void*>(address), parse_float_dtype(dtype), 0, stride, 0, 1, 0};
  weights_of(model).fill_vector(name, slice, offset, count);
}

StepLimits limits_of(const EngineConfig& config) {
  return {config.max_num_batched_tokens, config.max_num_seqs, config.max_logit_rows};
}

std::unique_ptr<Engine> start(const std::shared_ptr<Model>& model, EngineConfig config, const std::string& kv_dtype) {
  config.page_size = model->backend->page_size();
  config.vocab_size = model->spec.vocab_size;
  check(config);
  auto executor =
      std::make_unique<ModelExecutor>(model, limits_of(config), config.num_pages, parse_float_dtype(kv_dtype));
  return std::make_unique<Engine>(config, std::move(executor));
}

nb::dict measure_limits(int num_threads) {
  double read = 0.0;
  double float32 = 0.0;
  double bfloat16 = 0.0;
  {
    const GilRelease release;
    ThreadPool pool(num_threads);
    const CpuIsa isa = choose_isa(nullptr);
    read = measure_read_bandwidth(pool);
    float32 = measure_peak_ops(pool, isa, DType::kF32);
    bfloat16 = measure_peak_ops(pool, isa, DType::kBF16);
  }
  nb::dict out;
  out["read_bytes_per_s"] = read;
  out["float32_flops"] = float32;
  out["bfloat16_flops"] = bfloat16;
  return out;
}

}  // namespace

void bind_model(nb::module_& m) {
  using Release = nb::call_guard<GilRelease>;
  nb::class_<Model>(m, "Model", "A model on a device: plan its memory, fill its weights, start engines.")
      .def(nb::new_([](const ModelSpec& spec, const std::string& device, int num_threads, const std::string& dtype) {
             return std::make_shared<Model>(spec, make_backend(device, num_threads), parse_float_dtype(dtype));
           }),
           "spec"_a, nb::kw_only(), "device"_a, "num_threads"_a, "dtype"_a)
      .def_prop_ro("spec", [](const Model& self) { return self.spec; })
      .def_prop_ro("backend_name", [](const Model& self) { return std::string(self.backend->name()); })
      .def_prop_ro("num_threads", [](const Model& self) { return self.backend->num_threads(); })
      .def_prop_ro("page_size", [](const Model& self) { return self.backend->page_size(); })
      .def("weight_bytes", &Model::weight_bytes)
      .def(
          "step_bytes",
          [](const Model& self, int64_t max_tokens, int64_t max_seqs, int64_t max_logit_rows) {
            return self.step_bytes({max_tokens, max_seqs, max_logit_rows});
          },
          nb::kw_only(), "max_tokens"_a, "max_seqs"_a, "max_logit_rows"_a)
      .def(
          "kv_page_bytes",
          [](const Model& self, const std::string& dtype) { return self.kv_page_bytes(parse_float_dtype(dtype)); },
          "kv_dtype"_a)
      .def("allocate_weights", &Model::allocate_weights, Release())
      .def("fill_matrix", &fill_matrix, nb::kw_only(), "name"_a, "address"_a, "dtype"_a, "num_rows"_a, "num_cols"_a,
           "row_stride"_a, "col_stride"_a, "row_begin"_a, "expert"_a, Release())
      .def("fill_vector", &fill_vector, nb::kw_only(), "name"_a, "address"_a, "dtype"_a, "count"_a, "stride"_a,
           "offset"_a, Release())
      .def(
          "fill_random", [](Model& self, uint64_t seed) { weights_of(self).fill_random(seed); }, "seed"_a, Release())
      .def("unfilled", [](Model& self) { return weights_of(self).unfilled(); })
      .def(
          "start",
          [](const std::shared_ptr<Model>& self, const EngineConfig& config, const std::string& kv_dtype) {
            return start(self, config, kv_dtype);
          },
          "config"_a, "kv_dtype"_a, Release());
  m.def("measure_limits", &measure_limits, "num_threads"_a,
        "Read bandwidth (bytes/s) and peak arithmetic (FLOP/s) of this machine, measured now.");
  m.def("default_num_threads", &default_num_threads,
        "Threads that this process should use: affinity, cgroup quota, physical cores.");
}

}  // namespace fastllm
