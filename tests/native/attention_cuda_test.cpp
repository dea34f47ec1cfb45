// Attention of csrc/cuda in the emulator: the order of lanes, warps and blocks, the time at which asynchronous copies
// happen and the chip change no bit. A missing barrier or a too weak wait would.
#include <cmath>
#include <cstring>
#include <vector>

#include "cuda/emulated.h"
#include "harness.h"

namespace fastllm::test {
namespace {

using fl::simt::AsyncCopies;
using fl::simt::Order;

template <class T>
DeviceMemory on_device(Backend& backend, const std::vector<T>& values) {
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
  DeviceMemory memory = backend.allocate(bytes, "test array", Contents::kUndefined);
  backend.upload(memory.data(), values.data(), bytes);
  return memory;
}

struct Sequence {
  int64_t context;
  int64_t num_new;
};

// Decode with one and with three units, append, and prefill over two row blocks; the context is written by
// rope_and_store.
std::vector<float> attend(const fl::DeviceOptions& device, const KvSpec& spec, int64_t num_heads) {
  const std::vector<Sequence> sequences{{40, 1}, {530, 1}, {270, 3}, {150, 90}};
  const auto backend = make_emulated_cuda_backend(device);
  const int64_t page_size = backend->page_size();
  const int64_t kv_cols = spec.num_kv_heads * spec.head_dim;
  const int64_t q_cols = num_heads * spec.head_dim;
  Random random(options().seed);

  std::vector<int32_t> query_start{0};
  std::vector<int32_t> context_len;
  std::vector<int64_t> slots;
  constexpr int64_t kMaxPages = 40;
  std::vector<int32_t> block_table(sequences.size() * kMaxPages, -1);
  int64_t num_pages = 1;  // page 0 belongs to nobody
  for (std::size_t s = 0; s < sequences.size(); ++s) {
    query_start.push_back(query_start.back() + static_cast<int32_t>(sequences[s].num_new));
    context_len.push_back(static_cast<int32_t>(sequences[s].context));
    for (int64_t j = 0; j < sequences[s].context; ++j) {
      if (j % page_size == 0) {
        block_table[s * kMaxPages + static_cast<std::size_t>(j / page_size)] = static_cast<int32_t>(num_pages++);
      }
      slots.push_back((num_pages - 1) * page_size + j % page_size);
    }
  }
  const auto num_stored = static_cast<int64_t>(slots.size());
  const int64_t num_tokens = query_start.back();
  const auto numbers = [&](int64_t count) {
    std::vector<float> x(static_cast<std::size_t>(count));
    for (float& value : x) value = static_cast<float>(random.real(-2, 2));
    return x;
  };

  OpLimits limits;
  limits.max_tokens = num_stored;
  limits.max_seqs = static_cast<int64_t>(sequences.size());
  limits.num_heads = num_heads;
  limits.num_kv_heads = spec.num_kv_heads;
  limits.head_dim = spec.head_dim;
  backend->reserve(limits);

  const int64_t page_bytes = backend->kv_page_bytes(spec);
  const DeviceMemory pages = backend->allocate(num_pages * page_bytes, "pages", Contents::kUndefined);  // NaN
  const KvLayer kv{spec, pages.data(), page_bytes, num_pages};
  const DeviceMemory unused_q = on_device(*backend, numbers(num_stored * q_cols));
  const DeviceMemory k = on_device(*backend, numbers(num_stored * kv_cols));
  const DeviceMemory v = on_device(*backend, numbers(num_stored * kv_cols));
  const DeviceMemory device_slots = on_device(*backend, slots);
  backend->rope_and_store({{unused_q.data(), DType::kF32, num_stored, q_cols, q_cols},
                           {k.data(), DType::kF32, num_stored, kv_cols, kv_cols},
                           {v.data(), DType::kF32, num_stored, kv_cols, kv_cols},
                           nullptr,
                           nullptr,
                           0,
                           reinterpret_cast<const int64_t*>(device_slots.data()),
                           kv});

  const DeviceMemory q = on_device(*backend, numbers(num_tokens * q_cols));
  const DeviceMemory out = backend->allocate(num_tokens * q_cols * size_of(DType::kF32), "out", Contents::kUndefined);
  const DeviceMemory device_start = on_device(*backend, query_start);
  const DeviceMemory device_len = on_device(*backend, context_len);
  const DeviceMemory device_table = on_device(*backend, block_table);
  StepView step;
  step.num_tokens = num_tokens;
  step.num_seqs = limits.max_seqs;
  step.max_pages = kMaxPages;
  step.query_start = reinterpret_cast<const int32_t*>(device_start.data());
  step.context_len = reinterpret_cast<const int32_t*>(device_len.data());
  step.block_table = reinterpret_cast<const int32_t*>(device_table.data());
  PagedAttentionArgs args;
  args.q = {q.data(), DType::kF32, num_tokens, q_cols, q_cols};
  args.num_heads = num_heads;
  args.step = &step;
  args.kv = kv;
  args.scale = 0.125f;
  args.out = {out.data(), DType::kF32, num_tokens, q_cols, q_cols};
  backend->paged_attention(args);

  std::vector<float> result(static_cast<std::size_t>(num_tokens * q_cols));
  backend->download(result.data(), out.data(), out.size());
  return result;
}

void require_no_option_matters(const KvSpec& spec, int64_t num_heads) {
  const std::vector<float> expected = attend({}, spec, num_heads);
  for (const float x : expected) require(std::isfinite(x), "every output is written and finite");
  const auto require_same = [&](const fl::DeviceOptions& device, const std::string& what) {
    const std::vector<float> got = attend(device, spec, num_heads);
    require(std::memcmp(got.data(), expected.data(), expected.size() * sizeof(float)) == 0, what);
  };
  for (const AsyncCopies copies : {AsyncCopies::kAtIssue, AsyncCopies::kAtWait}) {
    const std::string when = copies == AsyncCopies::kAtIssue ? ", copies at issue" : ", copies at wait";
    require_same({.arch = 90, .simt = {Order::kReverse, copies, 0}}, "reverse order" + when);
    require_same({.arch = 80, .simt = {Order::kShuffled, copies, options().seed}}, "shuffled, sm_80" + when);
    require_same({.arch = 89, .simt = {Order::kShuffled, copies, options().seed + 1}}, "shuffled, sm_89" + when);
  }
}

NATIVE_TEST(orders_copies_and_chips_change_no_bit) {
  require_no_option_matters({.num_kv_heads = 2, .head_dim = 64, .dtype = DType::kBF16}, 6);
}
NATIVE_TEST(nor_with_int8_and_columns_in_two_blocks) {
  require_no_option_matters({.num_kv_heads = 1, .head_dim = 80, .dtype = DType::kI8}, 12);
}
NATIVE_TEST(nor_with_fp8) { require_no_option_matters({.num_kv_heads = 1, .head_dim = 64, .dtype = DType::kE4M3}, 5); }

}  // namespace
}  // namespace fastllm::test
