// Integer and fp8 weights: the definition at ActMode (ops/weights.h), step by step.
//
// Packed weight: [expert] of scales [n, groups] float32, then codes [n, k], then zeros [n, groups], a byte each.
#include <algorithm>
#include <array>
#include <cmath>
#include <vector>

#include "core/checked.h"
#include "reference/reference_backend.h"

namespace fastllm::reference {

int64_t int_matrix_bytes(const WeightDesc& desc) {
  const int64_t num_scales = checked_mul(desc.n, desc.groups(), "weight");
  return round_up(checked_mul(5, num_scales, "weight") + checked_mul(desc.n, desc.k, "weight"), 64);
}

IntMatrix int_matrix(const PackedWeight& w, int64_t expert) {
  auto* scales = reinterpret_cast<float*>(w.data + expert * int_matrix_bytes(w.desc));
  auto* codes = reinterpret_cast<uint8_t*>(scales + w.desc.n * w.desc.groups());
  return {scales, codes, codes + w.desc.n * w.desc.k};
}

int64_t scale_index(const WeightDesc& desc, int64_t n, int64_t k) {
  return n * desc.groups() + (desc.group == 0 ? 0 : k / desc.group);
}

int32_t centred_code(const IntMatrix& m, const WeightDesc& desc, int64_t n, int64_t k) {
  return m.codes[n * desc.k + k] - (desc.has_zeros ? m.zeros[scale_index(desc, n, k)] : desc.symmetric_zero());
}

float code_value(const IntMatrix& m, const WeightDesc& desc, int64_t n, int64_t k) {
  if (desc.format == WeightFormat::kE4M3) return to_float(e4m3{m.codes[n * desc.k + k]});
  return static_cast<float>(centred_code(m, desc, n, k));
}

void ReferenceBackend::pack_codes(const PackedWeight& to, const CodeSlice& slice) {
  const WeightDesc& desc = to.desc;
  const IntMatrix m = int_matrix(to, slice.expert);
  std::copy_n(slice.codes, slice.num_rows * desc.k, m.codes + slice.row_begin * desc.k);
  std::copy_n(slice.scales, slice.num_rows * desc.groups(), m.scales + slice.row_begin * desc.groups());
  if (desc.has_zeros) {
    std::copy_n(slice.zeros, slice.num_rows * desc.groups(), m.zeros + slice.row_begin * desc.groups());
  }
}

namespace {

// One group of activations as integers: x ~ scale * code (+ residual_scale * residual).
struct Quantized {
  float scale = 0.0f;
  bool has_residual = false;
  float residual_scale = 0.0f;
  std::array<int32_t, 128> code{};
  std::array<int32_t, 128> residual{};
};

bool has_outlier(const float* x, int64_t count, float amax) {
  std::array<float, 16> lanes{};
  for (int64_t i = 0; i < count; ++i) lanes[static_cast<std::size_t>(i % 16)] += std::fabs(x[i]);
  for (std::size_t width = 8; width > 0; width /= 2) {
    for (std::size_t i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  return amax * static_cast<float>(count) > 24.0f * lanes[0];
}

// NaN where a number is not finite.
float largest_of(const float* x, int64_t count) {
  float amax = 0x1p-96f;
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(x[i])) return std::nanf("");
    amax = std::max(amax, std::fabs(x[i]));
  }
  return amax;
}

Quantized quantize(const float* x, int64_t count, ActMode mode) {
  Quantized q;
  const float amax = largest_of(x, count);
  if (std::isnan(amax)) {
    q.scale = amax;
    return q;
  }
  const float largest = mode == ActMode::kA15 ? 16256.0f : 127.0f;
  q.scale = amax / largest;
  const float inverse = largest / amax;
  for (int64_t i = 0; i < count; ++i)
    q.code[static_cast<std::size_t>(i)] = static_cast<int32_t>(std::nearbyint(x[i] * inverse));
  if (mode != ActMode::kA8R || !has_outlier(x, count, amax)) return q;
  q.has_residual = true;
  q.residual_scale = q.scale / 254.0f;
  const float residual_inverse = 254.0f / q.scale;
  for (int64_t i = 0; i < count; ++i) {
    const auto at = static_cast<std::size_t>(i);
    const float left = std::fma(-q.scale, static_cast<float>(q.code[at]), x[i]);
    q.residual[at] = static_cast<int32_t>(std::nearbyint(left * residual_inverse));
  }
  return q;
}

// Row n of the matrix times quantized groups.
float int_dot(const IntMatrix& m, const WeightDesc& desc, int64_t n, const std::vector<Quantized>& x) {
  const int64_t group = desc.act_group();
  float acc = 0.0f;
  for (int64_t g = 0; g < static_cast<int64_t>(x.size()); ++g) {
    const Quantized& q = x[static_cast<std::size_t>(g)];
    const auto add = [&](const std::array<int32_t, 128>& code, float scale) {
      int32_t dot = 0;
      for (int64_t k = g * group; k < std::min(desc.k, (g + 1) * group); ++k) {
        dot += centred_code(m, desc, n, k) * code[static_cast<std::size_t>(k - g * group)];
      }
      acc = desc.group == 0 ? std::fma(static_cast<float>(dot), scale, acc)
                            : std::fma(static_cast<float>(dot) * scale, m.scales[n * desc.groups() + g], acc);
    };
    add(q.code, q.scale);
    if (q.has_residual) add(q.residual, q.residual_scale);
  }
  return desc.group == 0 ? acc * m.scales[n] : acc;
}

// The same for activations in fp8, a group at a time: x ~ scale * value.
struct QuantizedE4m3 {
  float scale = 0.0f;
  std::array<float, 128> value{};
};

QuantizedE4m3 quantize_e4m3(const float* x, int64_t count) {
  QuantizedE4m3 q;
  const float amax = largest_of(x, count);
  q.scale = amax / 448.0f;
  if (std::isnan(amax)) return q;
  const float inverse = 448.0f / amax;
  for (int64_t i = 0; i < count; ++i) q.value[static_cast<std::size_t>(i)] = to_float(to_e4m3(x[i] * inverse));
  return q;
}

float e4m3_dot(const IntMatrix& m, const WeightDesc& desc, int64_t n, const std::vector<QuantizedE4m3>& x) {
  const int64_t group = desc.act_group();
  float acc = 0.0f;
  for (int64_t g = 0; g < std::ssize(x); ++g) {
    const QuantizedE4m3& q = x[static_cast<std::size_t>(g)];
    float dot = 0.0f;
    for (int64_t k = g * group; k < std::min(desc.k, (g + 1) * group); ++k) {
      dot += code_value(m, desc, n, k) * q.value[static_cast<std::size_t>(k - g * group)];
    }
    acc = desc.group == 0 ? std::fma(dot, q.scale, acc) : std::fma(dot * q.scale, m.scales[n * desc.groups() + g], acc);
  }
  return desc.group == 0 ? acc * m.scales[n] : acc;
}

}  // namespace

void code_products(const PackedWeight& w, int64_t expert, const float* x, double* y) {
  const WeightDesc& desc = w.desc;
  const IntMatrix m = int_matrix(w, expert);
  if (desc.act == ActMode::kBF16 || desc.act == ActMode::kF32) {
    for (int64_t n = 0; n < desc.n; ++n) {
      double sum = 0.0;
      for (int64_t k = 0; k < desc.k; ++k) {
        const float a = desc.act == ActMode::kBF16 ? to_float(to_bf16(x[k])) : x[k];
        sum += static_cast<double>(a) * code_value(m, desc, n, k) * m.scales[scale_index(desc, n, k)];
      }
      y[n] = sum;
    }
    return;
  }
  const auto for_groups = [&](auto&& add) {
    for (int64_t k = 0; k < desc.k; k += desc.act_group()) add(x + k, std::min(desc.act_group(), desc.k - k));
  };
  if (desc.act == ActMode::kE4M3) {
    std::vector<QuantizedE4m3> groups;
    for_groups([&](const float* from, int64_t count) { groups.push_back(quantize_e4m3(from, count)); });
    for (int64_t n = 0; n < desc.n; ++n) y[n] = e4m3_dot(m, desc, n, groups);
    return;
  }
  std::vector<Quantized> groups;
  for_groups([&](const float* from, int64_t count) { groups.push_back(quantize(from, count, desc.act)); });
  for (int64_t n = 0; n < desc.n; ++n) y[n] = int_dot(m, desc, n, groups);
}

}  // namespace fastllm::reference
