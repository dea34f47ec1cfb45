// What fastllm.ops holds between calls: a backend, packed weights, K/V pages; and the row of parameters of `sample`.
#pragma once

#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "bindings/call_arrays.h"
#include "bindings/gil.h"
#include "bindings/on_device.h"
#include "bindings/ops_arrays.h"
#include "ops/ops.h"
#include "ops/sampling.h"

namespace fastllm {

// One backend for many calls. Calls from several threads take turns; its scratch grows to the largest call seen.
class OpsBackend {
 public:
  OpsBackend(const std::string& device, int num_threads);

  [[nodiscard]] Backend& get() { return *backend_; }

  // Runs f(backend, arguments on its device) without the GIL, with scratch for `need`.
  template <class F>
  void run(const OpLimits& need, const CallArrays& arrays, F&& f) {
    arrays.expect_usable_on(dlpack_device(*backend_));
    const GilRelease release;
    const std::lock_guard lock(mutex_);
    grow(need);
    const OnStream scope(*backend_, arrays.stream());
    OnDevice on(*backend_, arrays.are_on_device());
    f(*backend_, on);
    on.finish();
  }

 private:
  void grow(const OpLimits& need);

  std::unique_ptr<Backend> backend_;
  std::mutex mutex_;
  OpLimits limits_;
};

using Owner = std::shared_ptr<OpsBackend>;

struct OpsWeight {
  Owner owner;
  DeviceMemory memory;
  PackedWeight weight;

  // Floats [N, K] or [X, N, K].
  OpsWeight(Owner backend, const InArray& a, const std::optional<std::string>& dtype);
  // Codes [N, K] or [X, N, K], scales and zeros [N, groups] or [X, N, groups].
  OpsWeight(Owner backend, const InArray& codes, const InArray& scales, const std::optional<InArray>& zeros,
            int64_t group, const std::string& format, const std::string& act, const std::string& scale_dtype);

 private:
  void take_shape(const InArray& a, const char* name);
  void allocate(Backend& backend);
};

struct OpsKvCache {
  Owner owner;
  DeviceMemory memory;
  KvLayer layer;

  OpsKvCache(Owner backend, int64_t num_pages, int64_t num_kv_heads, int64_t head_dim, const std::string& dtype);
  [[nodiscard]] nanobind::bytes page_bytes(int64_t page) const;
};

// A SampleRow that owns what the row points to.
struct OpsSampleRow {
  SampleRow row;
  std::vector<TokenCount> counts;
  std::vector<LogitBias> bias;
  std::vector<int32_t> allowed;
  std::vector<uint32_t> mask;
  std::vector<int32_t> top_tokens;
  std::vector<float> top_logprobs;
};

// Throws kInvalidRequest naming `what` if it was made for another backend object than the one that is to use it.
void expect_same(const Owner& self, const Owner& other, const char* what);

}  // namespace fastllm
