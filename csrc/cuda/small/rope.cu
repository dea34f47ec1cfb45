// rope_table: cos, sin[t, i] = cos, sin(float(positions[t]) * inv_freq[i]) * scale.
// rope_and_store: rotates the first 2 * num_freqs dimensions of every head of q and k in place (i with i + num_freqs),
// and writes k and v, rounded to the cache's type (int8, fp8: quantized), into the slots of their tokens.
//       q [T, H * D], k, v [T, G * D], cos, sin [T, num_freqs], slots [T]
//
// The table: one thread per element. The rest: one warp per (token, head), heads of q first, then those of k (which
// also take v). Nothing is summed. Bytes moved: T * (2 H D + 3 G D) * 4 + T * 2 G D * sizeof(cache element).
// Defined by reference/attention.cpp; tested in tests/ops/test_attention.py.
#include "cuda/device_mat.h"
#include "cuda/kernels.h"
#include "cuda/kv_pages.h"

namespace fastllm::cuda {
namespace {

constexpr uint32_t kTableThreads = 128;
constexpr uint32_t kWarp = 32;

struct RopeTableParams {
  const int32_t* positions;
  const float* inv_freq;
  float* cos;
  float* sin;
  int64_t num_freqs;
  int64_t count;
  float scale;
};

// registers: 40
__global__ void __launch_bounds__(kTableThreads) rope_table_kernel(RopeTableParams p) {
  const int64_t i = global_thread();
  if (i >= p.count) return;
  // The angle is rounded to float as everywhere; its sine and cosine are then exact. Half turns in double: 2^17
  // positions leave 2^-35 of a turn, and no range reduction that spills to local memory.
  const float angle = static_cast<float>(p.positions[i / p.num_freqs]) * p.inv_freq[i % p.num_freqs];
  const double half_turns = static_cast<double>(angle) * 0.31830988618379067154;
  const fl::Vec<double, 2> sin_cos = fl::sin_cos_pi(half_turns);
  p.sin[i] = static_cast<float>(sin_cos[0]) * p.scale;
  p.cos[i] = static_cast<float>(sin_cos[1]) * p.scale;
}

template <class T>
struct RopeParams {
  DeviceMat q, k, v;
  const float* cos;
  const float* sin;
  const int64_t* slots;
  KvPages<T> kv;
  int64_t num_freqs;
  int32_t num_heads;
  int32_t head_dim;
};

__device__ inline void rotate(float* head, const float* cos, const float* sin, int64_t num_freqs) {
  for (int64_t i = fl::lane_id(); i < num_freqs; i += kWarp) {
    const float a = head[i];
    const float b = head[i + num_freqs];
    head[i] = fmaf(a, cos[i], -(b * sin[i]));
    head[i + num_freqs] = fmaf(b, cos[i], a * sin[i]);
  }
}

template <class T>
constexpr float kLargestCode = std::is_same_v<T, int8_t> ? 127.0f : 448.0f;
template <class T>
__device__ inline T nearest_code(float x) {
  if constexpr (std::is_same_v<T, int8_t>) {
    return static_cast<int8_t>(fminf(fmaxf(rintf(x), -127.0f), 127.0f));
  } else {
    return fl::to_e4m3(x);
  }
}

// The numbers of one token and head, rounded to the cache's type, zeros up to the pitch.
template <class T>
__device__ inline void store(const float* from, int32_t head_dim, int32_t pitch, KvRow<T> to) {
  for (auto d = static_cast<int32_t>(fl::lane_id()); d < pitch; d += kWarp) {
    to.x[d] = fl::from_float<T>(d < head_dim ? from[d] : 0.0f);
  }
}
// The same for codes, as KvSpec defines them.
template <class T>
__device__ inline void store_codes(const float* from, int32_t head_dim, int32_t pitch, KvRow<T> to) {
  const auto lane = static_cast<int32_t>(fl::lane_id());
  for (int32_t begin = 0; begin < head_dim; begin += to.scale_dims) {
    const int32_t end = begin + to.scale_dims < head_dim ? begin + to.scale_dims : head_dim;
    float largest = 0.0f;
    for (int32_t d = begin + lane; d < end; d += kWarp) {
      const float size = fabsf(from[d]);
      largest = size < INFINITY ? fmaxf(largest, size) : INFINITY;
      if (largest == INFINITY) break;
    }
    for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, fl::shfl_xor(fl::kFullMask, largest, step));
    const fl::bf16 scale = fl::to_bf16(largest < INFINITY ? largest / kLargestCode<T> : NAN);
    const float width = fl::to_float(scale);
    for (int32_t d = begin + lane; d < end; d += kWarp) {
      to.x[d] = width > 0.0f ? nearest_code<T>(from[d] / width) : T{};
    }
    if (lane == 0) to.scales[begin / to.scale_dims] = scale;
  }
  for (int32_t d = head_dim + lane; d < pitch; d += kWarp) to.x[d] = T{};
}

// registers: 56
template <class T>
__global__ void __launch_bounds__(kWarp) rope_and_store_kernel(RopeParams<T> p) {
  const int64_t t = blockIdx.x;
  const auto head = static_cast<int32_t>(blockIdx.y);
  const float* cos = p.cos + t * p.num_freqs;
  const float* sin = p.sin + t * p.num_freqs;
  if (head < p.num_heads) {
    rotate(p.q.row(t) + head * p.head_dim, cos, sin, p.num_freqs);
    return;
  }
  const int32_t kv_head = head - p.num_heads;
  float* k = p.k.row(t) + kv_head * p.head_dim;
  const float* v = p.v.row(t) + kv_head * p.head_dim;
  rotate(k, cos, sin, p.num_freqs);
  fl::sync_warp();
  const int64_t slot = p.slots[t];
  if (slot < 0) return;  // a row of padding
  const KvRow<T> k_row = p.kv.row(slot / kPageSize, false, kv_head, slot % kPageSize);
  const KvRow<T> v_row = p.kv.row(slot / kPageSize, true, kv_head, slot % kPageSize);
  if constexpr (kIsKvCode<T>) {
    store_codes(k, p.head_dim, p.kv.pitch, k_row);
    store_codes(v, p.head_dim, p.kv.pitch, v_row);
  } else {
    store(k, p.head_dim, p.kv.pitch, k_row);
    store(v, p.head_dim, p.kv.pitch, v_row);
  }
}

}  // namespace

void rope_table(fl::Stream& stream, const RopeTableArgs& args) {
  const int64_t count = args.num_tokens * args.num_freqs;
  const RopeTableParams p{args.positions, args.inv_freq, args.cos, args.sin, args.num_freqs, count, args.scale};
  fl::launch(stream, {"rope_table", grid_for(count, kTableThreads), kTableThreads, 0}, rope_table_kernel, p);
}

void rope_and_store(fl::Stream& stream, const RopeAndStoreArgs& args) {
  const KvSpec& spec = args.kv.spec;
  with_kv_type(spec.dtype, [&]<class T>(T) {
    const int64_t num_heads = args.q.cols / spec.head_dim;
    const RopeParams<T> p{device_mat(args.q),
                          device_mat(args.k),
                          device_mat(args.v),
                          args.cos,
                          args.sin,
                          args.slots,
                          kv_pages<T>(args.kv),
                          args.num_freqs,
                          narrow<int32_t>(num_heads),
                          narrow<int32_t>(spec.head_dim)};
    const fl::Dim3 grid{narrow<uint32_t>(args.q.rows), narrow<uint32_t>(num_heads + spec.num_kv_heads), 1};
    fl::launch(stream, {"rope_and_store", grid, kWarp, 0}, rope_and_store_kernel<T>, p);
  });
}

}  // namespace fastllm::cuda
