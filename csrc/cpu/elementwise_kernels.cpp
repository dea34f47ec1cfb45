// Everything that touches each number once: norms, rotations and the writing of K/V, gates, sums, soft caps. One row
// per call. The only reduction is the sum of squares: 16 lanes (index mod 16), then the fixed tree.
#include "cpu/simd_math.h"
#include "cpu/simd_pairs.h"

namespace fastllm::cpu::FASTLLM_ISA {
namespace {

// Calls body(i, n) for each run of n <= 16 numbers from i on.
template <class Body>
FASTLLM_INLINE void for_lanes(int64_t size, Body&& body) {
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) body(i, kLanes);
  if (i < size) body(i, size - i);
}

// y = s / sqrt(mean(s^2) + eps) * (weight + offset), s = x + add. s waits in y between the passes.
void rms_norm(const NormRow& row) {
  Vec squares = zero();
  for_lanes(row.size, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
    Vec s = load_n(row.x + i, n);
    if (row.add != nullptr) s = add(s, load_n(row.add + i, n));
    if (row.sum != nullptr) store_n(row.sum + i, s, n);
    store_n(row.y + i, s, n);
    squares = fma(s, s, squares);
  });
  const float mean = reduce_add(squares) / static_cast<float>(row.size);
  const Vec scale = set1(1.0f / __builtin_sqrtf(mean + row.eps));
  const Vec offset = set1(row.weight_offset);
  for_lanes(row.size, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
    const Vec weight = add(load_n(row.weight + i, n), offset);
    store_n(row.y + i, mul(mul(load_n(row.y + i, n), scale), weight), n);
  });
}

// (a, b) = (a cos - b sin, b cos + a sin) for a in the first num_freqs dimensions and b in the next.
void rotate(float* head, const float* cos, const float* sin, int64_t num_freqs) {
  for_lanes(num_freqs, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
    const Vec a = load_n(head + i, n);
    const Vec b = load_n(head + num_freqs + i, n);
    const Vec c = load_n(cos + i, n);
    const Vec s = load_n(sin + i, n);
    store_n(head + i, fma(a, c, sub(zero(), mul(b, s))), n);
    store_n(head + num_freqs + i, fma(b, c, mul(a, s)), n);
  });
}

FASTLLM_INLINE void narrow(F32, float* to, Vec x) { store(to, x); }
FASTLLM_INLINE void narrow(BF16, uint16_t* to, Vec x) { store_bf16(to, x); }
FASTLLM_INLINE void narrow(F16, uint16_t* to, Vec x) { store_f16(to, x); }
template <class E>
struct Storage {
  using Type = uint16_t;
};
template <>
struct Storage<F32> {
  using Type = float;
};

// Index of (step, lane) within a pair block.
template <class E>
constexpr int64_t pair_index(int64_t step, int64_t lane) {
  return E::kElem == Elem::kBF16 ? 2 * lane + step : kLanes * step + lane;
}

// Pages interleave 16 tokens, so a token's K goes to one element (bf16: pair) of every line of the K part.
template <class E>
void store_kv(const KvSlot& slot, const float* k, const float* v, int64_t head_dim) {
  using S = typename Storage<E>::Type;
  constexpr int64_t kBlock = 2 * kLanes;
  const int64_t num_blocks = (head_dim + kLanes - 1) / kLanes;
  S* k_part = reinterpret_cast<S*>(slot.k);
  S* v_part = reinterpret_cast<S*>(slot.v) + slot.token / 2 * num_blocks * kBlock;
  for_lanes(head_dim, [&](int64_t d, int64_t n) __attribute__((always_inline)) {
    S narrow_k[kLanes], narrow_v[kLanes];
    narrow(E{}, narrow_k, load_n(k + d, n));
    narrow(E{}, narrow_v, load_n(v + d, n));
    for (int64_t i = 0; i < n; ++i) {
      k_part[(d + i) / 2 * kBlock + pair_index<E>((d + i) % 2, slot.token)] = narrow_k[i];
      v_part[d / kLanes * kBlock + pair_index<E>(slot.token % 2, i)] = narrow_v[i];
    }
  });
}

// The scale of n numbers, as KvSpec defines it, in both forms.
struct Scale {
  float value;
  uint16_t bits;
};
FASTLLM_INLINE Scale scale_of(const float* x, int64_t n) {
  Vec largest = zero();
  Vec poison = zero();  // NaN as soon as a number is not finite
  for_lanes(n, [&](int64_t i, int64_t count) __attribute__((always_inline)) {
    const Vec v = load_n(x + i, count);
    largest = max(largest, max(v, sub(zero(), v)));
    poison = fma(v, zero(), poison);
  });
  uint16_t bits[kLanes];
  store_bf16(bits, set1(reduce_max(largest) / 127.0f + reduce_add(poison)));
  return {__builtin_bit_cast(float, static_cast<uint32_t>(bits[0]) << 16), bits[0]};
}

// Codes of up to 16 numbers. Not above 0: the scale is 0 or NaN, and so is every code.
FASTLLM_INLINE void quantize(const float* x, int64_t n, float scale, int16_t* codes) {
  const Vec limit = set1(127.0f);
  const Vec code = min(limit, max(sub(zero(), limit), div(load_n(x, n), set1(scale))));
  store_i16(codes, scale > 0.0f ? code : zero());
}

// As store_kv, in signed bytes.
void store_kv_int8(const KvSlot& slot, const float* k, const float* v, int64_t head_dim) {
  constexpr int64_t kBlock = 2 * kLanes;
  const int64_t num_blocks = (head_dim + kLanes - 1) / kLanes;
  int8_t* k_part = reinterpret_cast<int8_t*>(slot.k);
  int8_t* v_part = reinterpret_cast<int8_t*>(slot.v) + slot.token / 2 * num_blocks * kBlock;
  const auto put_scale = [&](std::byte* scales, uint16_t bits) __attribute__((always_inline)) {
    __builtin_memcpy(scales + slot.token * 2, &bits, sizeof(bits));
  };
  const Scale v_scale = scale_of(v, head_dim);
  put_scale(slot.v_scales, v_scale.bits);
  Scale k_scale{};
  for_lanes(head_dim, [&](int64_t d, int64_t n) __attribute__((always_inline)) {
    if (d % kScaleDims == 0) {
      k_scale = scale_of(k + d, head_dim - d < kScaleDims ? head_dim - d : kScaleDims);
      put_scale(slot.k_scales + d / kScaleDims * kScaleBytes, k_scale.bits);
    }
    int16_t k_codes[kLanes], v_codes[kLanes];
    quantize(k + d, n, k_scale.value, k_codes);
    quantize(v + d, n, v_scale.value, v_codes);
    for (int64_t i = 0; i < n; ++i) {
      k_part[(d + i) / 2 * kBlock + 2 * slot.token + (d + i) % 2] = static_cast<int8_t>(k_codes[i]);
      v_part[d / kLanes * kBlock + 2 * i + slot.token % 2] = static_cast<int8_t>(v_codes[i]);
    }
  });
}

void gated(const GatedRow& row) {
  const Vec one = set1(1.0f);
  const Vec alpha = set1(row.alpha);
  const Vec limit = set1(row.limit);
  for_lanes(row.size, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
    Vec g = load_n(row.gate + i, n);
    Vec u = load_n(row.up + i, n);
    Vec y;
    switch (row.kind) {
      case GatedKind::kSilu:
        y = mul(mul(g, sigmoid(g)), u);
        break;
      case GatedKind::kGeluTanh: {
        const Vec cubic = mul(mul(mul(g, g), g), set1(0.044715f));
        const Vec t = tanh(mul(set1(0.7978845608f), add(g, cubic)));
        y = mul(mul(mul(set1(0.5f), g), add(one, t)), u);
        break;
      }
      case GatedKind::kClampedSwiglu:
        g = min(limit, g);
        u = max(sub(zero(), limit), min(limit, u));
        y = mul(mul(g, sigmoid(mul(alpha, g))), add(u, one));
        break;
    }
    store_n(row.y + i, y, n);
  });
}

void add_rows(float* residual, const float* x, int64_t size) {
  for_lanes(size, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
    store_n(residual + i, add(load_n(residual + i, n), load_n(x + i, n)), n);
  });
}

void add_gated(float* residual, const float* x, float gate, int64_t size) {
  const Vec weight = sigmoid(set1(gate));
  for_lanes(size, [&](int64_t i, int64_t n) __attribute__((always_inline)) {
    store_n(residual + i, fma(weight, load_n(x + i, n), load_n(residual + i, n)), n);
  });
}

void softcap(float* x, float cap, int64_t size) {
  const Vec c = set1(cap);
  for_lanes(size, [&](int64_t i, int64_t n)
                      __attribute__((always_inline)) { store_n(x + i, mul(c, tanh(div(load_n(x + i, n), c))), n); });
}

}  // namespace

extern const ElementwiseKernels kElementwiseKernels;
constinit const ElementwiseKernels kElementwiseKernels = {
    rms_norm,  rotate,  {store_kv<F32>, store_kv<BF16>, store_kv<F16>, store_kv_int8}, gated, add_rows,
    add_gated, softcap,
};

}  // namespace fastllm::cpu::FASTLLM_ISA
