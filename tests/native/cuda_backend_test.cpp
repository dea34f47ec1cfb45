// What csrc/cuda/cuda_backend.cpp adds to the kernels, in the emulator whose streams do their work when they are waited
// for: uploads that the host does not wait for, and records of steps.
#include <array>
#include <cmath>
#include <vector>

#include "cuda/emulated.h"
#include "harness.h"

namespace fastllm::test {
namespace {

constexpr int64_t kCols = 64;

std::unique_ptr<Backend> make_backend(int64_t num_layers = 1) {
  auto backend = make_emulated_cuda_backend({.simt = {.streams = fl::simt::Streams::kAtWait}});
  OpLimits limits;
  limits.max_tokens = limits.max_seqs = limits.max_logit_rows = 1;
  limits.max_features = limits.vocab_size = limits.head_dim = kCols;
  limits.num_heads = limits.num_kv_heads = 1;
  limits.num_layers = num_layers;
  backend->reserve(limits);
  return backend;
}

// A row on the device, and sums into it.
struct Row {
  explicit Row(Backend& on)
      : backend(on), memory(on.allocate(kCols * int64_t{sizeof(float)}, "row", Contents::kZero)) {}
  [[nodiscard]] Mat mat() const { return {memory.data(), DType::kF32, 1, kCols, kCols}; }
  void put(const std::vector<float>& values) { backend.upload(memory.data(), values.data(), memory.size()); }
  void add(const Row& other) { backend.add({mat(), other.mat(), {}}); }
  [[nodiscard]] float first() const {
    std::vector<float> values(kCols);
    backend.download(values.data(), memory.data(), memory.size());
    return values[0];
  }
  Backend& backend;
  DeviceMemory memory;
};

NATIVE_TEST(what_was_uploaded_may_be_changed_at_once) {
  const auto backend = make_backend();
  Row sum(*backend);
  std::vector<float> values(100'000);
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(float));
  const DeviceMemory x = backend->allocate(bytes, "large", Contents::kUndefined);
  // Several times over the memory for uploads, which is 8 MiB, with no wait in between.
  constexpr int kRounds = 100;
  for (int i = 0; i < kRounds; ++i) {
    values[0] = static_cast<float>(i % 7);
    backend->upload(x.data(), values.data(), bytes);
    backend->add({sum.mat(), {x.data(), DType::kF32, 1, kCols, kCols}, {}});
    values[0] = std::nanf("");
  }
  double want = 0;
  for (int i = 0; i < kRounds; ++i) want += i % 7;
  require_equal(static_cast<double>(sum.first()), want, "the sum of all uploads");
}

NATIVE_TEST(an_upload_larger_than_its_memory_arrives) {
  const auto backend = make_backend();
  std::vector<int32_t> values((9 << 20) / 4);
  for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<int32_t>(i);
  const std::vector<int32_t> sent = values;
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(int32_t));
  const DeviceMemory there = backend->allocate(bytes, "large", Contents::kUndefined);
  const DeviceMemory small = backend->allocate(4, "small", Contents::kUndefined);
  backend->upload(small.data(), values.data() + 5, 4);
  backend->upload(there.data(), values.data(), bytes);
  values.assign(values.size(), -1);
  backend->download(values.data(), there.data(), bytes);
  require(values == sent, "a large upload");
  backend->download(values.data(), small.data(), 4);
  require_equal(values[0], 5, "a small one before it");
}

NATIVE_TEST(records_are_repeated_and_the_one_used_longest_ago_goes_first) {
  const auto backend = make_backend();
  Row sum(*backend);
  Row one(*backend);
  one.put(std::vector<float>(kCols, 1.0f));
  std::array<int, 100> calls{};
  const auto run = [&](uint64_t key) {
    backend->run(key, [&] {
      ++calls[key];
      sum.add(one);
    });
  };
  require_equal(backend->num_graphs(), int64_t{0}, "graphs of a new backend");
  backend->record(50, [&] {
    ++calls[50];
    sum.add(one);
  });
  require_equal(sum.first(), 0.0f, "recorded, not done");
  require_equal(backend->num_graphs(), int64_t{1}, "graphs");
  run(50);
  run(50);
  require_equal(calls[50], 1, "calls of what was recorded");
  require_equal(sum.first(), 2.0f, "two runs");

  int64_t most = 0;
  float num_runs = 2.0f;
  for (uint64_t key = 0; key < 45; ++key) {
    run(key);
    run(50);  // in use all the time
    num_runs += 2.0f;
    most = std::max(most, backend->num_graphs());
  }
  require_equal(most, int64_t{32}, "graphs are kept");
  require_equal(sum.first(), num_runs, "every run was done, also by graphs that were then dropped");
  require_equal(calls[50], 1, "one that is in use stays");
  run(44);
  require_equal(calls[44], 1, "so do the last");
  run(0);
  require_equal(calls[0], 2, "the first was dropped, and is recorded anew");
  require_equal(sum.first(), num_runs + 2.0f, "and done");
}

// Their memory is planned by the layers of the model; steps of more launches leave room for fewer.
NATIVE_TEST(records_stay_within_the_launches_that_were_planned) {
  OpLimits limits;
  limits.max_tokens = limits.max_seqs = limits.max_logit_rows = 1;
  limits.max_features = limits.vocab_size = limits.head_dim = kCols;
  limits.num_heads = limits.num_kv_heads = 1;
  const auto backend = make_backend();
  const int64_t without = backend->scratch_bytes(limits);
  limits.num_layers = 1;
  const int64_t planned = backend->scratch_bytes(limits) - without;
  require(planned > 0, "graphs are in the plan");
  constexpr int64_t kBytesPerLaunch = 16 << 10;
  const int64_t max_launches = planned / kBytesPerLaunch;

  Row sum(*backend);
  Row one(*backend);
  one.put(std::vector<float>(kCols, 1.0f));
  const int64_t launches = max_launches / 3;
  for (uint64_t key = 0; key < 5; ++key) {
    backend->run(key, [&] {
      for (int64_t i = 0; i < launches; ++i) sum.add(one);
    });
  }
  require_equal(backend->num_graphs(), int64_t{3}, "large graphs are kept");
  require_equal(sum.first(), static_cast<float>(5 * launches), "all were done");
  // One alone may be larger than the plan: it is kept, and nothing else.
  backend->run(9, [&] {
    for (int64_t i = 0; i < max_launches + 1; ++i) sum.add(one);
  });
  require_equal(backend->num_graphs(), int64_t{1}, "a graph larger than the plan");
}

}  // namespace
}  // namespace fastllm::test
