// Rotations, writing K/V into pages, and attention over them: two passes over the scores, in double.
#include <algorithm>
#include <cmath>
#include <vector>

#include "core/checked.h"
#include "reference/reference_backend.h"

namespace fastllm::reference {
namespace {

// Index of element (head, token, dim) in a page's K (is_v false) or V part.
int64_t kv_index(const KvSpec& spec, bool is_v, int64_t head, int64_t token, int64_t dim) {
  return (((is_v ? spec.num_kv_heads : 0) + head) * kPageSize + token) * spec.head_dim + dim;
}

// The scale of an element of an int8 or fp8 page.
bf16* kv_scale(const KvLayer& kv, int64_t page, bool is_v, int64_t head, int64_t token, int64_t dim) {
  const KvSpec& spec = kv.spec;
  const int64_t groups = ceil_div(spec.head_dim, kKvScaleDims);
  const int64_t row = head * kPageSize + token;
  bf16* scales =
      reinterpret_cast<bf16*>(kv.data + page * kv.page_bytes + kv_index(spec, true, spec.num_kv_heads, 0, 0));
  return scales + (is_v ? spec.num_kv_heads * kPageSize * groups + row : row * groups + dim / kKvScaleDims);
}

float kv_at(const KvLayer& kv, int64_t page, bool is_v, int64_t head, int64_t token, int64_t dim) {
  const std::byte* data = kv.data + page * kv.page_bytes;
  const int64_t at = kv_index(kv.spec, is_v, head, token, dim);
  if (has_kv_scales(kv.spec.dtype)) {
    const float code = kv.spec.dtype == DType::kI8 ? static_cast<float>(reinterpret_cast<const int8_t*>(data)[at])
                                                   : to_float(reinterpret_cast<const e4m3*>(data)[at]);
    return code * to_float(*kv_scale(kv, page, is_v, head, token, dim));
  }
  return with_float_dtype(kv.spec.dtype, [&]<class T>(T) { return to_float(reinterpret_cast<const T*>(data)[at]); });
}

int8_t nearest(float x, int8_t) { return static_cast<int8_t>(std::clamp(std::nearbyint(x), -127.0f, 127.0f)); }
e4m3 nearest(float x, e4m3) { return to_e4m3(x); }
constexpr float largest_of(int8_t) { return 127.0f; }
constexpr float largest_of(e4m3) { return 448.0f; }

// One group of numbers that share a scale, as KvSpec defines it.
template <class Code>
void quantize(const float* x, int64_t count, Code* codes, bf16* scale) {
  float largest = 0.0f;
  for (int64_t i = 0; i < count; ++i) largest = std::max(largest, std::abs(x[i]));
  if (!std::all_of(x, x + count, [](float value) { return std::isfinite(value); })) largest = NAN;
  *scale = to_bf16(largest / largest_of(Code{}));
  const float step = to_float(*scale);
  for (int64_t i = 0; i < count; ++i) {
    // Not above 0: the scale is 0 or NaN.
    codes[i] = step > 0.0f ? nearest(x[i] / step, Code{}) : Code{};
  }
}

// The head_dim numbers of one token and head, rounded to the cache's dtype.
void kv_put(const KvLayer& kv, int64_t slot, bool is_v, int64_t head, const float* x) {
  const int64_t head_dim = kv.spec.head_dim;
  const int64_t page = slot / kPageSize;
  const int64_t token = slot % kPageSize;
  std::byte* data = kv.data + page * kv.page_bytes;
  const int64_t at = kv_index(kv.spec, is_v, head, token, 0);
  const auto put_codes = [&]<class Code>(Code) {
    const int64_t group = is_v ? head_dim : kKvScaleDims;
    for (int64_t d = 0; d < head_dim; d += group) {
      quantize(x + d, std::min(group, head_dim - d), reinterpret_cast<Code*>(data) + at + d,
               kv_scale(kv, page, is_v, head, token, d));
    }
  };
  if (kv.spec.dtype == DType::kI8) return put_codes(int8_t{});
  if (kv.spec.dtype == DType::kE4M3) return put_codes(e4m3{});
  with_float_dtype(kv.spec.dtype, [&]<class T>(T) {
    for (int64_t d = 0; d < head_dim; ++d) reinterpret_cast<T*>(data)[at + d] = from_float<T>(x[d]);
  });
}

void rotate(float* head, const float* cos, const float* sin, int64_t num_freqs) {
  for (int64_t i = 0; i < num_freqs; ++i) {
    const double a = head[i];
    const double b = head[i + num_freqs];
    head[i] = static_cast<float>(a * cos[i] - b * sin[i]);
    head[i + num_freqs] = static_cast<float>(b * cos[i] + a * sin[i]);
  }
}

// Attention of one query head at one position.
void attend(const PagedAttentionArgs& args, const int32_t* pages, int64_t position, int64_t head, const float* q,
            float* out, std::vector<double>& scores) {
  const KvSpec& spec = args.kv.spec;
  const int64_t kv_head = head / (args.num_heads / spec.num_kv_heads);
  const int64_t first = args.window > 0 ? std::max<int64_t>(0, position + 1 - args.window) : 0;
  scores.assign(static_cast<std::size_t>(position + 1 - first), 0.0);
  double top = args.sinks != nullptr ? args.sinks[head] : -INFINITY;
  for (int64_t j = first; j <= position; ++j) {
    double s = 0.0;
    for (int64_t d = 0; d < spec.head_dim; ++d) {
      s += static_cast<double>(q[d]) * kv_at(args.kv, pages[j / kPageSize], false, kv_head, j % kPageSize, d);
    }
    s *= args.scale;
    if (args.softcap > 0.0f) s = args.softcap * std::tanh(s / args.softcap);
    scores[static_cast<std::size_t>(j - first)] = s;
    top = std::max(top, s);
  }
  double sum = args.sinks != nullptr ? std::exp(args.sinks[head] - top) : 0.0;
  for (double& s : scores) sum += s = std::exp(s - top);
  for (int64_t d = 0; d < spec.head_dim; ++d) {
    double value = 0.0;
    for (int64_t j = first; j <= position; ++j) {
      value += scores[static_cast<std::size_t>(j - first)] *
               kv_at(args.kv, pages[j / kPageSize], true, kv_head, j % kPageSize, d);
    }
    out[d] = static_cast<float>(value / sum);
  }
}

}  // namespace

void ReferenceBackend::rope_table(const RopeTableArgs& args) {
  for (int64_t t = 0; t < args.num_tokens; ++t) {
    for (int64_t i = 0; i < args.num_freqs; ++i) {
      // The angle is rounded to float as every public implementation does; its sine and cosine are then exact.
      const double angle = static_cast<float>(args.positions[t]) * args.inv_freq[i];
      args.cos[t * args.num_freqs + i] = static_cast<float>(std::cos(angle)) * args.scale;
      args.sin[t * args.num_freqs + i] = static_cast<float>(std::sin(angle)) * args.scale;
    }
  }
}

void ReferenceBackend::rope_and_store(const RopeAndStoreArgs& args) {
  const int64_t head_dim = args.kv.spec.head_dim;
  for (int64_t t = 0; t < args.q.rows; ++t) {
    const float* cos = args.cos + t * args.num_freqs;
    const float* sin = args.sin + t * args.num_freqs;
    for (int64_t h = 0; h < args.q.cols / head_dim; ++h)
      rotate(args.q.row<float>(t) + h * head_dim, cos, sin, args.num_freqs);
    for (int64_t g = 0; g < args.kv.spec.num_kv_heads; ++g) {
      float* k = args.k.row<float>(t) + g * head_dim;
      const float* v = args.v.row<float>(t) + g * head_dim;
      rotate(k, cos, sin, args.num_freqs);
      kv_put(args.kv, args.slots[t], false, g, k);
      kv_put(args.kv, args.slots[t], true, g, v);
    }
  }
}

void ReferenceBackend::paged_attention(const PagedAttentionArgs& args) {
  const StepView& step = *args.step;
  const int64_t head_dim = args.kv.spec.head_dim;
  std::vector<double> scores;
  for (int64_t s = 0; s < step.num_seqs; ++s) {
    const int32_t* pages = step.block_table + s * step.max_pages;
    const int64_t num_new = step.query_start[s + 1] - step.query_start[s];
    for (int64_t i = 0; i < num_new; ++i) {
      const int64_t t = step.query_start[s] + i;
      const int64_t position = step.context_len[s] - num_new + i;
      for (int64_t h = 0; h < args.num_heads; ++h) {
        attend(args, pages, position, h, args.q.row<float>(t) + h * head_dim, args.out.row<float>(t) + h * head_dim,
               scores);
      }
    }
  }
}

}  // namespace fastllm::reference
