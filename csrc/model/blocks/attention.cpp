// Grouped-query attention over pages: delta = Wo * attend(rope(norm(Wqkv * normed))).
#include "model/decoder.h"

namespace fastllm {

void attention_block(const LayerSpec& layer, const LayerWeights& w, const StepView& step, const KvLayer& kv,
                     const ModelSpec& spec, Backend& backend, const Activations& a) {
  const AttentionSpec& attention = layer.attention;
  const int64_t q_dim = attention.num_heads * attention.head_dim;
  const int64_t kv_dim = attention.num_kv_heads * attention.head_dim;
  const Mat qkv = a.qkv.columns(0, q_dim + 2 * kv_dim);
  backend.linear({a.normed, w.qkv, w.qkv_bias, qkv});

  const Mat q = qkv.columns(0, q_dim);
  const Mat k = qkv.columns(q_dim, kv_dim);
  const Mat v = qkv.columns(q_dim + kv_dim, kv_dim);
  if (attention.qk_norm != QkNorm::kNone) {
    const bool per_head = attention.qk_norm == QkNorm::kPerHead;
    const auto norm = [&](const Mat& x, const float* weight) {
      backend.rms_norm({.x = x,
                        .residual = {},
                        .weight = weight,
                        .weight_offset = layer.qk_norm.weight_offset,
                        .eps = layer.qk_norm.eps,
                        .group = per_head ? attention.head_dim : x.cols,
                        .row_ids = nullptr,
                        .y = x});
    };
    norm(q, w.q_norm);
    norm(k, w.k_norm);
  }

  const auto rope = static_cast<std::size_t>(attention.rope_idx);
  backend.rope_and_store(
      {q, k, v, a.cos[rope], a.sin[rope], static_cast<int64_t>(spec.ropes[rope].inv_freq.size()), step.slots, kv});
  const Mat attended = a.attended.columns(0, q_dim);
  backend.paged_attention(
      {q, attention.num_heads, &step, kv, attention.scale, attention.window, attention.softcap, w.sinks, attended});
  backend.linear({attended, w.o, w.o_bias, a.delta});
}

}  // namespace fastllm
