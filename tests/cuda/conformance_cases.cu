#include "conformance_cases.h"
#include "cuda/fl/gpu.h"

namespace fl::conformance {
namespace {

// What a case does with the words of one thread.
struct Words {
  const uint32_t* in;
  uint32_t* out;
  __device__ float f(int i) const { return bit_cast<float>(in[i]); }
  __device__ int32_t s(int i) const { return static_cast<int32_t>(in[i]); }
  __device__ void put(int i, uint32_t x) const { out[i] = x; }
  __device__ void put(int i, int32_t x) const { out[i] = static_cast<uint32_t>(x); }
  __device__ void put(int i, float x) const { out[i] = bit_cast<uint32_t>(x); }
  __device__ void put(int i, bool x) const { out[i] = x ? 1 : 0; }
};

struct Conversions {
  static __device__ void run(Words w) {
    w.put(0, static_cast<uint32_t>(to_bf16(w.f(0)).bits));
    w.put(1, static_cast<uint32_t>(to_f16(w.f(1)).bits));
    w.put(2, static_cast<uint32_t>(to_e4m3(w.f(2)).bits));
    w.put(3, pack_bf16x2(w.f(3), w.f(4)));
    w.put(4, pack_f16x2(w.f(3), w.f(4)));
    w.put(5, f16x2_from_e4m3x2(static_cast<uint16_t>(w.in[5])));
    w.put(6, unpack_bf16x2(w.in[6])[1]);
    w.put(7, unpack_bf16x2(w.in[6])[0]);
  }
};
struct E4m3Bytes {
  static __device__ void run(Words w) {
    const uint32_t x = w.in[0] & 0xfefefefeu;  // no NaN: the last bit, then one of the exponent, is 0
    w.put(0, f16x2_from_e4m3_bytes<0, 1>(x));
    w.put(1, f16x2_from_e4m3_bytes<2, 3>(x));
    w.put(2, f16x2_from_e4m3_bytes<3, 0>(x));
    const uint32_t y = w.in[1] & 0xf7f7f7f7u;
    w.put(3, f16x2_from_e4m3_bytes<0, 2>(y));
    w.put(4, f16x2_from_e4m3_bytes<1, 3>(y));
    w.put(5, bf16x2_from_e4m3_bytes<0, 1>(x));
    w.put(6, bf16x2_from_e4m3_bytes<2, 3>(y));
  }
};
struct PackedF16 {
  static __device__ void run(Words w) {
    w.put(0, sub_f16x2(w.in[4], w.in[5]));
    w.put(1, mul_f16x2(w.in[5], w.in[6]));
    w.put(2, unpack_f16x2(w.in[7])[0]);
    w.put(3, unpack_f16x2(w.in[7])[1]);
  }
};
struct PackedBf16 {
  static __device__ void run(Words w) {
    w.put(0, fma_bf16x2(w.in[0], w.in[1], w.in[2]));
    w.put(1, sub_bf16x2(w.in[4], w.in[5]));
    w.put(2, mul_bf16x2(w.in[5], w.in[6]));
  }
};
struct Bits {
  static __device__ void run(Words w) {
    w.put(0, prmt(w.in[0], w.in[1], w.in[2]));
    w.put(1, popc(w.in[6]) * 100 + ffs(w.in[6]));
  }
};
struct Approximations {
  static __device__ void run(Words w) {
    w.put(0, ex2(w.f(0)));
    w.put(1, rcp(w.f(3)));
  }
};

struct SinCosPi {
  static __device__ void run(Words w) {
    const Vec<double, 2> y = sin_cos_pi(static_cast<double>(w.f(0)) * 1e3);
    w.put(0, static_cast<float>(y[0]));
    w.put(1, static_cast<float>(y[1]));
  }
};

struct Shuffles {
  static __device__ void run(Words w) {
    w.put(0, shfl(kFullMask, w.in[0], w.s(1)));
    w.put(1, shfl(kFullMask, w.in[0], w.s(1), 8));
    w.put(2, shfl_up(kFullMask, w.in[2], 3));
    w.put(3, shfl_up(kFullMask, w.in[2], 5, 16));
    w.put(4, shfl_xor(kFullMask, w.f(3), 9));
    const uint64_t wide = shfl_xor(kFullMask, static_cast<uint64_t>(w.in[4]) << 32 | w.in[5], 16);
    w.put(5, static_cast<uint32_t>(wide));
    w.put(6, static_cast<uint32_t>(wide >> 32));
  }
};
struct Votes {
  static __device__ void run(Words w) {
    w.put(0, match_any(kFullMask, w.in[0] & 1u));
    w.put(1, any(kFullMask, (w.in[1] & 31u) == 0));
    w.put(2, all(kFullMask, (w.in[2] & 255u) != 0));
    w.put(3, match_any(kFullMask, w.in[3] & 3u));
    const uint32_t half = lane_id() < 16 ? 0xffffu : 0xffff0000u;
    w.put(4, match_any(half, w.in[4] & 1u));
    w.put(5, lane_id() * 256 + warp_id());
  }
};
struct Reductions {
  static __device__ void run(Words w) {
    w.put(0, reduce_add(kFullMask, w.in[0]));
    w.put(1, reduce_add(kFullMask, w.s(4)));
  }
};
struct BlockBarriers {
  static __device__ void run(Words w) {
    uint32_t* shared = smem<uint32_t>();
    shared[threadIdx.x] = w.in[0];
    sync_threads();
    w.put(0, shared[(threadIdx.x + 37) % kThreads]);
    w.put(1, sync_threads_or((w.in[1] & 63u) == 0));
  }
};
struct AsyncCopies {
  static __device__ void run(Words w) {
    unsigned char* shared = smem<unsigned char>() + threadIdx.x * 64;
    const uint32_t to = smem_addr(shared);
    cp_async<16>(to, w.in);
    cp_async_commit();
    cp_async<16>(to + 16, w.in + 4, static_cast<int>(threadIdx.x % 17));
    cp_async<8>(to + 32, w.in + 2, static_cast<int>(threadIdx.x % 9));
    cp_async<4>(to + 40, w.in + 1, static_cast<int>(threadIdx.x % 5));
    cp_async_commit();
    cp_async_wait<1>();
    const uint32_t* words = reinterpret_cast<const uint32_t*>(shared);
    w.put(0, words[0] ^ words[1] ^ words[2] ^ words[3]);
    cp_async_wait<0>();
    for (int i = 0; i < 7; ++i) w.put(1 + i, words[4 + i]);
  }
};
// Both warps load the same 32 rows of 16 bytes.
__device__ inline uint32_t matrix_row(Words w, int rows) {
  uint32_t* shared = smem<uint32_t>();
  if (threadIdx.x < 32) {
    for (int i = 0; i < 4; ++i) shared[threadIdx.x * 4 + static_cast<uint32_t>(i)] = w.in[i];
  }
  sync_threads();
  return smem_addr(shared + lane_id() % static_cast<uint32_t>(rows) * 4);
}
struct LoadMatrix {
  static __device__ void run(Words w) {
    const uint32_t row = matrix_row(w, 32);
    uint32_t four[4];
    ldmatrix(four, row);
    for (int i = 0; i < 4; ++i) w.put(i, four[i]);
    uint32_t two[2];
    ldmatrix(two, row);
    w.put(4, two[0] ^ (two[1] << 1));
    uint32_t one[1];
    ldmatrix(one, row);
    w.put(5, one[0]);
    w.put(6, movmatrix_trans(w.in[7]));
  }
};
struct LoadMatrixTransposed {
  static __device__ void run(Words w) {
    const uint32_t row = matrix_row(w, 32);
    uint32_t four[4];
    ldmatrix_trans(four, row);
    for (int i = 0; i < 4; ++i) w.put(i, four[i]);
    uint32_t two[2];
    ldmatrix_trans(two, row);
    w.put(4, two[0]);
    w.put(5, two[1]);
    uint32_t one[1];
    ldmatrix_trans(one, row);
    w.put(6, one[0]);
  }
};
struct MmaBf16 {
  static __device__ void run(Words w) {
    const uint32_t a[4] = {w.in[0], w.in[1], w.in[2], w.in[3]};
    const uint32_t b[2] = {w.in[4], w.in[5]};
    float d[4] = {1.0f, -2.0f, 0.5f, 0.0f};
    mma_bf16(d, a, b);
    for (int i = 0; i < 4; ++i) w.put(i, d[i]);
  }
};
struct MmaF16 {
  static __device__ void run(Words w) {
    const uint32_t a[4] = {w.in[0], w.in[1], w.in[2], w.in[3]};
    const uint32_t b[2] = {w.in[4], w.in[5]};
    float d[4] = {1.0f, -2.0f, 0.5f, 0.0f};
    mma_f16(d, a, b);
    for (int i = 0; i < 4; ++i) w.put(i, d[i]);
  }
};
struct MmaBytes {
  static __device__ void run(Words w) {
    const uint32_t a[4] = {w.in[0], w.in[1], w.in[2], w.in[3]};
    const uint32_t b[2] = {w.in[4], w.in[5]};
    int32_t d[4] = {0, 1, w.s(6), w.s(7)};
    mma_u8s8(d, a, b);
    for (int i = 0; i < 4; ++i) w.put(i, d[i]);
  }
};
struct MmaE4m3 {
  static __device__ void run(Words w) {
    const auto small = [&](int i) { return w.in[i] & 0xbfbfbfbfu; };  // below 2, and no NaN
    const uint32_t a[4] = {small(0), small(1), small(2), small(3)};
    const uint32_t b[2] = {small(4), small(5)};
    float d[4] = {1.0f, -2.0f, 0.5f, 0.0f};
    mma_e4m3(d, a, b);
    for (int i = 0; i < 4; ++i) w.put(i, d[i]);
  }
};
// Sums and extremes do not depend on the order.
struct Atomics {
  static __device__ void run(Words w) {
    uint32_t* shared = smem<uint32_t>();
    auto* wide = reinterpret_cast<uint64_t*>(shared + 4);
    if (threadIdx.x < 8) shared[threadIdx.x] = 0u;
    sync_threads();
    atomic_add(shared, w.in[0]);
    atomic_add(reinterpret_cast<int32_t*>(shared) + 1, w.s(3));
    atomic_or(shared + 2, w.in[4] & w.in[5]);
    atomic_add(wide, static_cast<uint64_t>(w.in[6]));
    atomic_max(wide + 1, static_cast<uint64_t>(w.in[7]) << 20);
    sync_threads();
    w.put(0, shared[threadIdx.x % 8]);
    const uint32_t old = atomic_add(&w.out[0], 5u);  // of this thread alone
    w.put(1, old);
    fence_device();
    w.put(2, w.out[0]);
  }
};
struct Loads {
  static __device__ void run(Words w) {
    w.put(0, load_nc(w.in));
    const Vec<uint32_t, 2> two = load_nc(reinterpret_cast<const Vec<uint32_t, 2>*>(w.in + 2));
    w.put(1, two[0]);
    w.put(2, two[1]);
    const Vec<uint32_t, 4> four = load_nc(reinterpret_cast<const Vec<uint32_t, 4>*>(w.in + 4));
    w.put(3, four[0] ^ four[3]);
    const Vec<float, 4> stream = load_stream(reinterpret_cast<const Vec<float, 4>*>(w.in));
    for (int i = 0; i < 4; ++i) w.put(4 + i, bit_cast<uint32_t>(stream[i]));
  }
};

template <class Body>
__global__ void run_case(const uint32_t* in, uint32_t* out) {
  Body::run({in + threadIdx.x * kWordsIn, out + threadIdx.x * kWordsOut});
}

template <class Body>
constexpr Case make(const char* name, Input input, Compare compare) {
  return {name, input, compare, [](Stream& stream, const uint32_t* in, uint32_t* out) {
            launch(stream, {"conformance", {1, 1, 1}, kThreads, 4096}, run_case<Body>, in, out);
          }};
}

constexpr Case kCases[] = {
    make<Conversions>("conversions", Input::kFloats, Compare::kBits),
    make<E4m3Bytes>("e4m3_bytes", Input::kWords, Compare::kBits),
    make<PackedF16>("packed_f16", Input::kHalves, Compare::kBits),
    make<PackedBf16>("packed_bf16", Input::kBf16s, Compare::kBits),
    make<Bits>("bits", Input::kWords, Compare::kBits),
    make<Approximations>("approximations", Input::kFloats, Compare::kApprox),
    make<SinCosPi>("sin_cos_pi", Input::kFloats, Compare::kOrderOne),
    make<Shuffles>("shuffles", Input::kWords, Compare::kBits),
    make<Votes>("votes", Input::kWords, Compare::kBits),
    make<Reductions>("reductions", Input::kWords, Compare::kBits),
    make<BlockBarriers>("block_barriers", Input::kWords, Compare::kBits),
    make<AsyncCopies>("async_copies", Input::kWords, Compare::kBits),
    make<LoadMatrix>("load_matrix", Input::kWords, Compare::kBits),
    make<LoadMatrixTransposed>("load_matrix_transposed", Input::kWords, Compare::kBits),
    make<MmaBf16>("mma_bf16", Input::kBf16s, Compare::kMmaSum),
    make<MmaF16>("mma_f16", Input::kHalves, Compare::kMmaSum),
    make<MmaBytes>("mma_bytes", Input::kWords, Compare::kBits),
    make<MmaE4m3>("mma_e4m3", Input::kWords, Compare::kMmaFp8),
    make<Atomics>("atomics", Input::kWords, Compare::kBits),
    make<Loads>("loads", Input::kWords, Compare::kBits),
};

}  // namespace

std::span<const Case> cases() { return kCases; }

}  // namespace fl::conformance
