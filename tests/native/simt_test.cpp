// The emulator: its barriers, warp functions, matrix instructions and copies against plain loops, and what it says of
// kernels that are wrong.
#include <cmath>
#include <cstring>
#include <memory>
#include <vector>

#include "../cuda/conformance_cases.h"
#include "../cuda/conformance_inputs.h"
#include "cuda/emulated.h"
#include "cuda/fl/gpu.h"
#include "harness.h"

namespace fastllm::test {
namespace {

using fl::simt::AsyncCopies;
using fl::simt::Order;

fl::DeviceOptions device_options(Order order = Order::kForward, AsyncCopies copies = AsyncCopies::kAtWait) {
  return {.ordinal = 0, .arch = 90, .simt = {order, copies, options().seed}};
}

// A device, and one array on it.
template <class T>
struct OnDevice {
  OnDevice(fl::Stream& s, const std::vector<T>& values)
      : stream(s), size(values.size()), buffer(s.device(), static_cast<int64_t>(size * sizeof(T)), "test array") {
    stream.upload(buffer.data(), values.data(), buffer.size());
  }
  [[nodiscard]] T* data() const { return reinterpret_cast<T*>(buffer.data()); }
  [[nodiscard]] std::vector<T> get() const {
    std::vector<T> values(size);
    stream.download(values.data(), buffer.data(), buffer.size());
    return values;
  }
  fl::Stream& stream;
  std::size_t size;
  fl::DeviceBuffer buffer;
};

template <class Kernel, class... Args>
std::string error_of(Kernel kernel, fl::LaunchConfig config, fl::Stream& stream, Args... args) {
  return require_error(ErrorKind::kDevice, [&] { fl::launch(stream, config, kernel, args...); }, config.name);
}
void require_contains(const std::string& text, const std::string& part) {
  require(text.find(part) != std::string::npos, "\"" + part + "\" is not in: " + text);
}

// Sums 256 numbers by a tree in shared memory and adds the number of the block.
void tree_sum(const uint32_t* x, uint32_t* sums) {
  auto* shared = fl::smem<uint32_t>();
  shared[threadIdx.x] = x[threadIdx.x];
  fl::sync_threads();
  for (uint32_t width = blockDim.x / 2; width > 0; width /= 2) {
    if (threadIdx.x < width) shared[threadIdx.x] += shared[threadIdx.x + width];
    fl::sync_threads();
  }
  if (threadIdx.x == 0) sums[blockIdx.x] = shared[0] + blockIdx.x;
}

NATIVE_TEST(every_order_gives_the_same_sums) {
  for (const Order order : {Order::kForward, Order::kReverse, Order::kShuffled}) {
    fl::Device device(device_options(order));
    fl::Stream stream(device);
    std::vector<uint32_t> x(256);
    for (uint32_t i = 0; i < 256; ++i) x[i] = i * i;
    const OnDevice in(stream, x);
    const OnDevice sums(stream, std::vector<uint32_t>(5));
    fl::launch(stream, {"tree_sum", {5}, 256, 1024}, tree_sum, in.data(), sums.data());
    const std::vector<uint32_t> got = sums.get();
    for (uint32_t i = 0; i < 5; ++i) require_equal(got[i], 5559680u + i, "sum of squares");
  }
}

void forgets_a_barrier(uint32_t* out) {
  auto* shared = fl::smem<uint32_t>();
  shared[threadIdx.x] = threadIdx.x;
  out[threadIdx.x] = shared[threadIdx.x ^ 1u];
}

NATIVE_TEST(a_missing_barrier_shows_as_poison) {
  fl::Device device(device_options());
  fl::Stream stream(device);
  const OnDevice out(stream, std::vector<uint32_t>(32));
  fl::launch(stream, {"forgets_a_barrier", {1}, 32, 128}, forgets_a_barrier, out.data());
  require_equal(out.get()[0], 0xffffffffu, "what lane 1 had not yet written");
}

void divergent(uint32_t* out) {
  if (threadIdx.x < 32) {
    fl::sync_threads();
  } else if (threadIdx.x < 63) {
    out[threadIdx.x] = fl::shfl(fl::kFullMask, threadIdx.x, 0);
  } else if (threadIdx.x == 63) {
    fl::sync_threads();
  }
}
void mixed(uint32_t* out) {
  if (threadIdx.x < 16) {
    out[threadIdx.x] = fl::all(fl::kFullMask, true) ? 1 : 0;
  } else {
    out[threadIdx.x] = fl::any(fl::kFullMask, true) ? 1 : 0;
  }
}
// Each of these is right in every lane's own eyes.
void two_barriers(uint32_t* out) {
  if (threadIdx.x < 16) {
    fl::sync_threads();
  } else {
    fl::sync_threads();
  }
  out[0] = 0;
}
void two_kinds_of_barrier(uint32_t* out) {
  if (threadIdx.x < 32) {
    fl::sync_threads();
  } else {
    out[threadIdx.x] = fl::sync_threads_or(true) ? 1 : 0;
  }
}
void two_transposes(uint32_t* out) {
  if (threadIdx.x % 2 == 0) {
    out[threadIdx.x] = fl::movmatrix_trans(threadIdx.x);
  } else {
    out[threadIdx.x] = fl::movmatrix_trans(threadIdx.x + 1);
  }
}
void reads_outside(const uint32_t* in, float* out) { out[threadIdx.x] = 1.0f + fl::bit_cast<float>(in[threadIdx.x]); }
void leaves_early(uint32_t* out) {
  if (threadIdx.x == 7) return;
  out[threadIdx.x] = fl::shfl_xor(fl::kFullMask, threadIdx.x, 1);
}
void out_of_shared(uint32_t* out) {
  fl::smem<uint32_t>()[32 + threadIdx.x] = 1;
  out[0] = 0;
}
void bad_address(uint32_t* out) { fl::cp_async<16>(fl::smem_addr(fl::smem<uint32_t>() + 26), out); }
void out_of_array(uint32_t* out, uint32_t i) { out[i] = 1; }

NATIVE_TEST(wrong_kernels_get_a_readable_error) {
  fl::Device device(device_options());
  fl::Stream stream(device);
  const OnDevice out(stream, std::vector<uint32_t>(96));
  const std::string deadlock = error_of(divergent, {"divergent", {2}, 96, 0}, stream, out.data());
  require_contains(deadlock, "kernel divergent, block (0, 0, 0): deadlock");
  require_contains(deadlock, "threads 0-31: waits in sync_threads at simt_test.cpp:");
  require_contains(deadlock, "threads 32-62: waits in shfl with mask 0xffffffff at simt_test.cpp:");
  require_contains(deadlock, "threads 63-63: waits in sync_threads at simt_test.cpp:");
  require_contains(deadlock, "threads 64-95: ended");
  require_contains(error_of(mixed, {"mixed", {1}, 32, 0}, stream, out.data()), "different collectives");
  require_contains(error_of(two_barriers, {"two_barriers", {1}, 32, 0}, stream, out.data()), "different places");
  require_contains(error_of(two_kinds_of_barrier, {"two_kinds_of_barrier", {1}, 64, 0}, stream, out.data()),
                   "threads meet in sync_threads and in sync_threads_or");
  require_contains(error_of(two_transposes, {"two_transposes", {1}, 32, 0}, stream, out.data()), "different places");
  require_contains(error_of(leaves_early, {"leaves_early", {1}, 32, 0}, stream, out.data()), "ended");
  require_contains(error_of(out_of_shared, {"out_of_shared", {1}, 32, 128}, stream, out.data()),
                   "wrote at offset 128 of 128 bytes of shared memory");
  require_contains(error_of(bad_address, {"bad_address", {1}, 1, 128}, stream, out.data()), "not aligned");
  require_contains(error_of(out_of_array, {"out_of_array", {1}, 1, 0}, stream, out.data(), 96u),
                   "wrote at offset 384 of \"test array\" (384 bytes)");
  require_contains(error_of(tree_sum, {"too_much", {1}, 32, 228 << 10}, stream, out.data(), out.data()), "sm_90 has");
}

NATIVE_TEST(reads_outside_an_allocation_do_not_look_like_zeros) {
  fl::Device device(device_options());
  fl::Stream stream(device);
  const OnDevice in(stream, std::vector<uint32_t>(31, 0u));
  const OnDevice out(stream, std::vector<float>(32));
  fl::launch(stream, {"reads_outside", {1}, 32, 0}, reads_outside, in.data(), out.data());
  require(out.get()[31] < -1e38f, "a guard is a large number");
}

NATIVE_TEST(host_pointers_do_not_reach_kernels) {
  fl::Device device(device_options());
  fl::Stream stream(device);
  const std::vector<uint32_t> host(256, 1);
  const OnDevice sums(stream, std::vector<uint32_t>(1));
  require_contains(error_of(tree_sum, {"tree_sum", {1}, 256, 1024}, stream, host.data(), sums.data()),
                   "argument 0 is a pointer to host memory");
  std::vector<uint32_t> target(4);
  require_contains(require_error(
                       ErrorKind::kDevice, [&] { stream.download(target.data(), sums.data(), 16); }, "range"),
                   "not within one allocation");
}

NATIVE_TEST(graphs_repeat_what_was_recorded) {
  fl::Device device(device_options());
  fl::Stream stream(device);
  std::vector<uint32_t> x(256, 1);
  const OnDevice in(stream, x);
  const OnDevice sums(stream, std::vector<uint32_t>(1));
  stream.begin_capture();
  stream.upload(in.data(), x.data(), 1024);
  fl::launch(stream, {"tree_sum", {1}, 256, 1024}, tree_sum, in.data(), sums.data());
  const fl::Graph graph = stream.end_capture();
  require_equal(sums.get()[0], 0u, "recorded, not run");
  for (uint32_t i = 1; i < 3; ++i) {
    x.assign(256, i);
    stream.run(graph);
    require_equal(sums.get()[0], 256 * i, "run");
  }
}

NATIVE_TEST(an_error_within_a_capture_is_what_is_reported_and_leaves_the_stream_usable) {
  fl::Device device(device_options());
  fl::Stream stream(device);
  const OnDevice in(stream, std::vector<uint32_t>(256, 1));
  const OnDevice sums(stream, std::vector<uint32_t>(1));
  stream.begin_capture();
  fl::launch(stream, {"tree_sum", {1}, 256, 1024}, tree_sum, in.data(), sums.data());
  require_contains(error_of(tree_sum, {"too_much", {1}, 32, 228 << 10}, stream, in.data(), sums.data()), "sm_90 has");
  stream.abort_capture();
  require_equal(sums.get()[0], 0u, "forgotten, not run");
  fl::launch(stream, {"tree_sum", {1}, 256, 1024}, tree_sum, in.data(), sums.data());
  require_equal(sums.get()[0], 256u, "no longer recorded");

  const std::unique_ptr<Backend> backend = make_emulated_cuda_backend(device_options());
  const auto broken = [&] { backend->run(1, [] { fail(ErrorKind::kDevice, "a launch failed"); }); };
  require_contains(require_error(ErrorKind::kDevice, broken, "capture"), "a launch failed");
  int runs = 0;
  backend->run(1, [&] { ++runs; });
  backend->run(1, [&] { ++runs; });
  require_equal(runs, 1, "the key was recorded anew, once");
}

NATIVE_TEST(async_copies_come_at_issue_or_at_the_wait) {
  const auto kernel = +[](const uint32_t* in, uint32_t* out) {
    auto* shared = fl::smem<uint32_t>();
    fl::cp_async<16>(fl::smem_addr(shared), in);
    fl::cp_async_commit();
    out[0] = shared[0];
    fl::cp_async<16>(fl::smem_addr(shared + 4), in, 4);
    fl::cp_async_commit();
    fl::cp_async_wait<1>();
    out[1] = shared[0];
    out[2] = shared[4];
    fl::cp_async_wait<0>();
    out[3] = shared[4];
    out[4] = shared[5];
  };
  for (const AsyncCopies copies : {AsyncCopies::kAtIssue, AsyncCopies::kAtWait}) {
    fl::Device device(device_options(Order::kForward, copies));
    fl::Stream stream(device);
    const OnDevice in(stream, std::vector<uint32_t>{1, 2, 3, 4});
    const OnDevice out(stream, std::vector<uint32_t>(5));
    fl::launch(stream, {"copies", {1}, 1, 32}, kernel, in.data(), out.data());
    const uint32_t early = copies == AsyncCopies::kAtIssue ? 1u : 0xffffffffu;
    require(out.get() == std::vector<uint32_t>{early, 1, early, 1, 0}, "copies");
  }
}

// Fragments are filled by the element formulas of fl/ptx/matrix.h; the product is the oracle.
NATIVE_TEST(mma_is_a_matrix_product) {
  const auto kernel = +[](const float* a, const float* b, float* d) {
    const uint32_t g = fl::lane_id() / 4;
    const uint32_t t = fl::lane_id() % 4;
    const auto pair_a = [&](uint32_t row, uint32_t k) { return fl::pack_bf16x2(a[row * 16 + k], a[row * 16 + k + 1]); };
    const auto pair_b = [&](uint32_t k, uint32_t n) { return fl::pack_bf16x2(b[k * 8 + n], b[(k + 1) * 8 + n]); };
    const uint32_t af[4] = {pair_a(g, 2 * t), pair_a(g + 8, 2 * t), pair_a(g, 2 * t + 8), pair_a(g + 8, 2 * t + 8)};
    const uint32_t bf[2] = {pair_b(2 * t, g), pair_b(2 * t + 8, g)};
    float df[4] = {0.5f, 0.5f, 0.5f, 0.5f};
    fl::mma_bf16(df, af, bf);
    d[g * 8 + 2 * t] = df[0];
    d[g * 8 + 2 * t + 1] = df[1];
    d[(g + 8) * 8 + 2 * t] = df[2];
    d[(g + 8) * 8 + 2 * t + 1] = df[3];
  };
  Random random(options().seed);
  std::vector<float> a(16 * 16);
  std::vector<float> b(16 * 8);
  for (float& x : a) x = static_cast<float>(random.pick(-64, 64)) / 32.0f;
  for (float& x : b) x = static_cast<float>(random.pick(-64, 64)) / 32.0f;
  fl::Device device(device_options());
  fl::Stream stream(device);
  const OnDevice ad(stream, a);
  const OnDevice bd(stream, b);
  const OnDevice dd(stream, std::vector<float>(16 * 8));
  fl::launch(stream, {"mma", {1}, 32, 0}, kernel, ad.data(), bd.data(), dd.data());
  const std::vector<float> got = dd.get();
  for (std::size_t m = 0; m < 16; ++m) {
    for (std::size_t n = 0; n < 8; ++n) {
      float want = 0.5f;
      for (std::size_t k = 0; k < 16; ++k) want += a[m * 16 + k] * b[k * 8 + n];
      require_equal(got[m * 8 + n], want, "element");
    }
  }
}

// fp8 against the elements of its definition, and what chips without the instruction do instead. Sums are exact here.
NATIVE_TEST(mma_of_e4m3_is_a_matrix_product_by_halves_too) {
  const auto kernel = +[](const uint32_t* a, const uint32_t* b, float* d) {
    const uint32_t g = fl::lane_id() / 4;
    const uint32_t t = fl::lane_id() % 4;
    // Words of four elements: A [16][8 words], B [8 columns][8 words].
    const uint32_t af[4] = {a[g * 8 + t], a[(g + 8) * 8 + t], a[g * 8 + 4 + t], a[(g + 8) * 8 + 4 + t]};
    const uint32_t bf[2] = {b[g * 8 + t], b[g * 8 + 4 + t]};
    for (uint32_t way = 0; way < 2; ++way) {
      float df[4] = {0.5f, 0.5f, 0.5f, 0.5f};
      if (way == 0) {
        fl::mma_e4m3(df, af, bf);
      } else {
        fl::mma_e4m3_by_halves(df, af, bf);
      }
      for (uint32_t i = 0; i < 4; ++i) d[way * 128 + (g + i / 2 * 8) * 8 + 2 * t + i % 2] = df[i];
    }
  };
  Random random(options().seed);
  std::vector<uint8_t> a(16 * 32);
  std::vector<uint8_t> b(8 * 32);
  for (auto* bytes : {&a, &b}) {
    for (uint8_t& code : *bytes) {
      code = fl::to_e4m3(static_cast<float>(random.pick(-15, 15)) * (random.chance(50) ? 0.25f : 8.0f)).bits;
    }
  }
  const auto words = [](const std::vector<uint8_t>& bytes) {
    std::vector<uint32_t> out(bytes.size() / 4);
    std::memcpy(out.data(), bytes.data(), bytes.size());
    return out;
  };
  fl::Device device(device_options());
  fl::Stream stream(device);
  const OnDevice ad(stream, words(a));
  const OnDevice bd(stream, words(b));
  const OnDevice dd(stream, std::vector<float>(2 * 16 * 8));
  fl::launch(stream, {"mma", {1}, 32, 0}, kernel, ad.data(), bd.data(), dd.data());
  const std::vector<float> got = dd.get();
  for (std::size_t i = 0; i < got.size(); ++i) {
    const std::size_t m = i % 128 / 8;
    const std::size_t n = i % 8;
    float want = 0.5f;
    for (std::size_t k = 0; k < 32; ++k) {
      want += fl::to_float(fl::e4m3{a[m * 32 + k]}) * fl::to_float(fl::e4m3{b[n * 32 + k]});
    }
    require_equal(got[i], want, i < 128 ? "element" : "element by halves");
  }
}

// A tile through ldmatrix, as both operands of an MMA: x x^T needs .trans for neither, and movmatrix transposes.
NATIVE_TEST(ldmatrix_and_movmatrix_move_elements_where_they_belong) {
  const auto kernel = +[](const uint16_t* x, uint32_t* out) {
    auto* shared = fl::smem<uint16_t>();
    for (uint32_t i = fl::lane_id(); i < 64; i += 32) shared[i] = x[i];
    fl::sync_warp();
    uint32_t plain[1];
    fl::ldmatrix(plain, fl::smem_addr(shared + fl::lane_id() % 8 * 8));
    uint32_t turned[1];
    fl::ldmatrix_trans(turned, fl::smem_addr(shared + fl::lane_id() % 8 * 8));
    out[fl::lane_id()] = plain[0];
    out[32 + fl::lane_id()] = turned[0];
    out[64 + fl::lane_id()] = fl::movmatrix_trans(plain[0]);
  };
  fl::Device device(device_options());
  fl::Stream stream(device);
  std::vector<uint16_t> x(64);
  for (uint16_t i = 0; i < 64; ++i) x[i] = static_cast<uint16_t>(i / 8 * 100 + i % 8);
  const OnDevice in(stream, x);
  const OnDevice out(stream, std::vector<uint32_t>(96));
  fl::launch(stream, {"matrices", {1}, 32, 128}, kernel, in.data(), out.data());
  const std::vector<uint32_t> got = out.get();
  for (uint32_t l = 0; l < 32; ++l) {
    const uint32_t g = l / 4;
    const uint32_t t = l % 4;
    require_equal(got[l], (g * 100 + 2 * t) | (g * 100 + 2 * t + 1) << 16, "ldmatrix");
    require_equal(got[32 + l], (2 * t * 100 + g) | ((2 * t + 1) * 100 + g) << 16, "ldmatrix_trans");
    require_equal(got[64 + l], got[32 + l], "movmatrix_trans");
  }
}

NATIVE_TEST(small_floats_round_as_their_definitions_say) {
  for (uint32_t code = 0; code < 256; ++code) {
    const fl::e4m3 x{static_cast<uint8_t>(code)};
    if ((code & 0x7fu) == 0x7fu) {
      require(std::isnan(fl::to_float(x)), "NaN of e4m3");
      continue;
    }
    require_equal(static_cast<uint32_t>(fl::to_e4m3(fl::to_float(x)).bits), code, "e4m3 there and back");
    const uint32_t next = code + 1;
    if ((next & 0x7fu) == 0x7fu || (next & 0x7fu) == 0) continue;
    // Half way between neighbours goes to the even code; a hair beyond goes to the nearer one.
    const float middle = (fl::to_float(x) + fl::to_float(fl::e4m3{static_cast<uint8_t>(next)})) / 2;
    require_equal(static_cast<uint32_t>(fl::to_e4m3(middle).bits), (code & 1u) == 0 ? code : next, "tie of e4m3");
    require_equal(static_cast<uint32_t>(fl::to_e4m3(middle * 1.0001f).bits), next, "above a tie of e4m3");
  }
  require_equal(static_cast<uint32_t>(fl::to_e4m3(1e9f).bits), 0x7eu, "saturation of e4m3");
  // 1 + 2^-8 + 2^-30: rounding to float first would make a tie of it in bf16.
  const uint32_t one_and_half_ulp = fl::fma_bf16x2(0x3f803f80u, 0x3b803b80u, 0x3f803f80u);
  require_equal(one_and_half_ulp, 0x3f803f80u, "a tie of bf16 goes to even");
  const uint32_t tiny = fl::pack_bf16x2(0x1p-15f, 0x1p-15f);
  require_equal(fl::fma_bf16x2(tiny, tiny, fl::pack_bf16x2(1.0f + 0x1p-7f, 1.0f)),
                fl::pack_bf16x2(1.0f + 0x1p-7f, 1.0f), "a product too small to matter");
}

// The cases of the conformance test (fl/gpu.h on a GPU against the emulator) depend on no option of the emulator.
NATIVE_TEST(conformance_cases_do_not_depend_on_order_or_temper) {
  for (const fl::conformance::Case& c : fl::conformance::cases()) {
    std::vector<uint32_t> first;
    for (const Order order : {Order::kForward, Order::kReverse, Order::kShuffled}) {
      for (const AsyncCopies copies : {AsyncCopies::kAtIssue, AsyncCopies::kAtWait}) {
        fl::Device device(device_options(order, copies));
        fl::Stream stream(device);
        const OnDevice in(stream, fl::conformance::inputs(c.input, options().seed));
        const OnDevice out(stream, std::vector<uint32_t>(fl::conformance::kThreads * fl::conformance::kWordsOut));
        c.run(stream, in.data(), out.data());
        if (first.empty()) first = out.get();
        require(first == out.get(), c.name);
      }
    }
  }
}

}  // namespace
}  // namespace fastllm::test
