// simd.h in plain loops, for any processor. fma is the correctly rounded one, so bits agree with the vector levels.
#pragma once

namespace fastllm::cpu::FASTLLM_ISA {

struct Vec {
  float v[16];
};
struct Mask {
  bool m[16];
};

FASTLLM_INLINE Vec set1(float x) {
  Vec r;
  for (int i = 0; i < 16; ++i) r.v[i] = x;
  return r;
}
FASTLLM_INLINE Vec zero() { return set1(0.0f); }
FASTLLM_INLINE Vec load(const float* p) {
  Vec r;
  for (int i = 0; i < 16; ++i) r.v[i] = p[i];
  return r;
}
FASTLLM_INLINE Vec load_n(const float* p, int64_t n) {
  Vec r;
  for (int i = 0; i < 16; ++i) r.v[i] = i < n ? p[i] : 0.0f;
  return r;
}
FASTLLM_INLINE void store(float* p, Vec a) {
  for (int i = 0; i < 16; ++i) p[i] = a.v[i];
}
FASTLLM_INLINE void store_n(float* p, Vec a, int64_t n) {
  for (int i = 0; i < 16; ++i) {
    if (i < n) p[i] = a.v[i];
  }
}

#define FASTLLM_LANEWISE(name, expression)            \
  FASTLLM_INLINE Vec name(Vec a, Vec b) {             \
    Vec r;                                            \
    for (int i = 0; i < 16; ++i) r.v[i] = expression; \
    return r;                                         \
  }
FASTLLM_LANEWISE(add, a.v[i] + b.v[i])
FASTLLM_LANEWISE(sub, a.v[i] - b.v[i])
FASTLLM_LANEWISE(mul, a.v[i] * b.v[i])
FASTLLM_LANEWISE(div, a.v[i] / b.v[i])
FASTLLM_LANEWISE(max, a.v[i] > b.v[i] ? a.v[i] : b.v[i])
FASTLLM_LANEWISE(min, a.v[i] < b.v[i] ? a.v[i] : b.v[i])
#undef FASTLLM_LANEWISE

FASTLLM_INLINE Vec fma(Vec a, Vec b, Vec c) {
  Vec r;
  for (int i = 0; i < 16; ++i) r.v[i] = __builtin_fmaf(a.v[i], b.v[i], c.v[i]);
  return r;
}
FASTLLM_INLINE Mask less(Vec a, Vec b) {
  Mask r;
  for (int i = 0; i < 16; ++i) r.m[i] = a.v[i] < b.v[i];
  return r;
}
FASTLLM_INLINE Mask is_number(Vec a) {
  Mask r;
  for (int i = 0; i < 16; ++i) r.m[i] = !__builtin_isnan(a.v[i]);
  return r;
}
FASTLLM_INLINE Mask lanes(int64_t begin, int64_t end) {
  Mask r;
  for (int i = 0; i < 16; ++i) r.m[i] = i >= begin && i < end;
  return r;
}
FASTLLM_INLINE uint32_t bits(Mask m) {
  uint32_t r = 0;
  for (int i = 0; i < 16; ++i) r |= static_cast<uint32_t>(m.m[i]) << i;
  return r;
}
FASTLLM_INLINE Vec select(Mask m, Vec a, Vec b) {
  Vec r;
  for (int i = 0; i < 16; ++i) r.v[i] = m.m[i] ? a.v[i] : b.v[i];
  return r;
}
FASTLLM_INLINE Vec scale2(Vec p, Vec t) {
  Vec r;
  for (int i = 0; i < 16; ++i) {
    r.v[i] =
        __builtin_bit_cast(float, __builtin_bit_cast(uint32_t, p.v[i]) + (__builtin_bit_cast(uint32_t, t.v[i]) << 23));
  }
  return r;
}
FASTLLM_INLINE float reduce_add(Vec a) {
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) a.v[i] = a.v[i] + a.v[i + width];
  }
  return a.v[0];
}
FASTLLM_INLINE float reduce_max(Vec a) {
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) a.v[i] = a.v[i] > a.v[i + width] ? a.v[i] : a.v[i + width];
  }
  return a.v[0];
}

struct Doubles {
  double v[16];
};
FASTLLM_INLINE Doubles zero_doubles() { return {}; }
FASTLLM_INLINE Doubles add(Doubles x, Vec y) {
  for (int i = 0; i < 16; ++i) x.v[i] += static_cast<double>(y.v[i]);
  return x;
}
FASTLLM_INLINE double reduce_add(Doubles x) {
  for (int width = 8; width > 0; width /= 2) {
    for (int i = 0; i < width; ++i) x.v[i] = x.v[i] + x.v[i + width];
  }
  return x.v[0];
}

FASTLLM_INLINE float widen_bf16(uint16_t x) { return __builtin_bit_cast(float, static_cast<uint32_t>(x) << 16); }
FASTLLM_INLINE float widen_f16(uint16_t x) {
  const uint32_t sign = static_cast<uint32_t>(x & 0x8000u) << 16;
  const uint32_t exponent = (x >> 10) & 0x1fu;
  const uint32_t mantissa = x & 0x3ffu;
  if (exponent == 0) {  // zero and subnormals: exact in float
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return sign != 0 ? -magnitude : magnitude;
  }
  const uint32_t e = exponent == 31 ? 255u : exponent + 112u;
  const uint32_t quiet = exponent == 31 && mantissa != 0 ? 0x400000u : 0u;  // as the hardware's conversion does
  return __builtin_bit_cast(float, sign | (e << 23) | (mantissa << 13) | quiet);
}
FASTLLM_INLINE uint16_t narrow_bf16(float x) {
  const uint32_t u = __builtin_bit_cast(uint32_t, x);
  if ((u & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((u >> 16) | 0x40u);
  return static_cast<uint16_t>((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}
FASTLLM_INLINE uint16_t narrow_f16(float x) {
  const uint32_t u = __builtin_bit_cast(uint32_t, x);
  const uint32_t sign = (u >> 16) & 0x8000u;
  const uint32_t a = u & 0x7fffffffu;
  if (a > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((a >> 13) & 0x3ffu));
  if (a >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // rounds to >= 65520
  if (a < 0x38800000u) {  // subnormal: the addition of 0.5 rounds at bit 2^-24
    const float shifted = __builtin_bit_cast(float, a) + 0.5f;
    return static_cast<uint16_t>(sign | (__builtin_bit_cast(uint32_t, shifted) - 0x3f000000u));
  }
  const uint32_t rounded = a + 0xfffu + ((a >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

FASTLLM_INLINE uint16_t read_u16(const std::byte* p) {
  uint16_t x;
  __builtin_memcpy(&x, p, sizeof(x));
  return x;
}
FASTLLM_INLINE void load_pair(F32, const std::byte* p, Vec& a, Vec& b) {
  __builtin_memcpy(a.v, p, 64);
  __builtin_memcpy(b.v, p + 64, 64);
}
FASTLLM_INLINE void load_pair(BF16, const std::byte* p, Vec& a, Vec& b) {
  for (int i = 0; i < 16; ++i) {
    a.v[i] = widen_bf16(read_u16(p + 4 * i));
    b.v[i] = widen_bf16(read_u16(p + 4 * i + 2));
  }
}
FASTLLM_INLINE void load_pair(F16, const std::byte* p, Vec& a, Vec& b) {
  for (int i = 0; i < 16; ++i) {
    a.v[i] = widen_f16(read_u16(p + 2 * i));
    b.v[i] = widen_f16(read_u16(p + 32 + 2 * i));
  }
}
FASTLLM_INLINE void store_bf16(uint16_t* p, Vec a) {
  for (int i = 0; i < 16; ++i) p[i] = narrow_bf16(a.v[i]);
}
FASTLLM_INLINE void store_f16(uint16_t* p, Vec a) {
  for (int i = 0; i < 16; ++i) p[i] = narrow_f16(a.v[i]);
}

}  // namespace fastllm::cpu::FASTLLM_ISA
