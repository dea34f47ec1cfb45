#include "model/decoder.h"

#include <algorithm>

#include "core/checked.h"
#include "core/fault.h"

namespace fastllm {
namespace {

// The widest row of each activation over all layers.
struct Widths {
  int64_t qkv = 0, attended = 0, gate_up = 0, activated = 0, experts = 0, experts_per_token = 0, moe = 0;
  bool has_shared = false;
};

Widths widths_of(const ModelSpec& spec) {
  Widths w;
  const auto widen_ffn = [&w](int64_t ffn_dim) {
    w.gate_up = std::max(w.gate_up, 2 * ffn_dim);
    w.activated = std::max(w.activated, ffn_dim);
  };
  for (const LayerSpec& layer : spec.layers) {
    const AttentionSpec& a = layer.attention;
    w.qkv = std::max(w.qkv, (a.num_heads + 2 * a.num_kv_heads) * a.head_dim);
    w.attended = std::max(w.attended, a.num_heads * a.head_dim);
    if (layer.ffn) widen_ffn(layer.ffn->ffn_dim);
    if (layer.moe) {
      w.experts = std::max(w.experts, layer.moe->num_experts);
      w.experts_per_token = std::max(w.experts_per_token, layer.moe->experts_per_token);
      w.moe = std::max(w.moe, layer.moe->ffn_dim);
      if (layer.moe->shared_ffn_dim > 0) {
        widen_ffn(layer.moe->shared_ffn_dim);
        w.has_shared = true;
      }
    }
  }
  return w;
}

Mat take_mat(Arena& arena, int64_t rows, int64_t cols) {
  return {arena.take<float>(checked_mul(rows, cols, "activations")), DType::kF32, rows, cols, cols};
}

Activations place(const ModelSpec& spec, const StepLimits& limits, bool fuses_ffn, Arena& arena) {
  const Widths w = widths_of(spec);
  const int64_t t = limits.max_tokens;
  Activations a;
  a.residual = take_mat(arena, t, spec.hidden_size);
  a.normed = take_mat(arena, t, spec.hidden_size);
  a.delta = take_mat(arena, t, spec.hidden_size);
  a.qkv = take_mat(arena, t, w.qkv);
  a.attended = take_mat(arena, t, w.attended);
  a.gate_up = take_mat(arena, fuses_ffn ? 0 : t, w.gate_up);
  a.activated = take_mat(arena, fuses_ffn ? 0 : t, w.activated);
  a.router = take_mat(arena, t, w.experts);
  a.shared = take_mat(arena, w.has_shared ? t : 0, spec.hidden_size);
  a.shared_gate = take_mat(arena, w.has_shared ? t : 0, 1);
  a.experts = arena.take<int32_t>(checked_mul(t, w.experts_per_token));
  a.expert_weights = arena.take<float>(checked_mul(t, w.experts_per_token));
  a.expert_use = arena.take<ExpertUse>(checked_mul(std::ssize(spec.layers), w.experts));
  a.last = take_mat(arena, limits.max_logit_rows, spec.hidden_size);
  a.logits = arena.take<float>(checked_mul(limits.max_logit_rows, spec.vocab_size));
  for (const RopeSpec& rope : spec.ropes) {
    const auto num_freqs = static_cast<int64_t>(rope.inv_freq.size());
    a.cos.push_back(arena.take<float>(checked_mul(t, num_freqs)));
    a.sin.push_back(arena.take<float>(checked_mul(t, num_freqs)));
    a.inv_freq.push_back(arena.take<float>(num_freqs));
  }
  return a;
}

LayerWeights look_up(const ModelWeights& weights, std::size_t idx) {
  const std::string p = "layers." + std::to_string(idx) + ".";
  const auto m = [&](const char* name) { return weights.find_matrix(p + name); };
  const auto v = [&](const char* name) { return weights.find_vector(p + name); };
  return {.qkv = m("qkv"),
          .o = m("o"),
          .gate_up = m("gate_up"),
          .down = m("down"),
          .router = m("router"),
          .expert_gate_up = m("experts.gate_up"),
          .expert_down = m("experts.down"),
          .shared_gate_up = m("shared.gate_up"),
          .shared_down = m("shared.down"),
          .shared_gate = m("shared_gate"),
          .qkv_bias = v("qkv_bias"),
          .o_bias = v("o_bias"),
          .sinks = v("sinks"),
          .q_norm = v("q_norm"),
          .k_norm = v("k_norm"),
          .router_bias = v("router_bias"),
          .expert_gate_up_bias = v("experts.gate_up_bias"),
          .expert_down_bias = v("experts.down_bias"),
          .attention_norm = v("attention_norm"),
          .attention_post_norm = v("attention_post_norm"),
          .ffn_norm = v("ffn_norm"),
          .ffn_post_norm = v("ffn_post_norm")};
}

const NormSpec* get(const std::optional<NormSpec>& norm) { return norm ? &*norm : nullptr; }

// The rows of this step out of buffers made for the largest one.
Activations for_step(const Activations& all, int64_t num_tokens) {
  Activations a = all;
  for (Mat* m : {&a.residual, &a.normed, &a.delta, &a.qkv, &a.attended, &a.router}) m->rows = num_tokens;
  if (a.gate_up.rows > 0) a.gate_up.rows = a.activated.rows = num_tokens;
  if (a.shared.rows > 0) a.shared.rows = a.shared_gate.rows = num_tokens;
  return a;
}

}  // namespace

OpLimits op_limits(const ModelSpec& spec, const StepLimits& limits) {
  const Widths w = widths_of(spec);
  OpLimits out;
  out.max_tokens = limits.max_tokens;
  out.max_seqs = limits.max_seqs;
  out.max_logit_rows = limits.max_logit_rows;
  out.max_features = std::max({spec.hidden_size, w.qkv, w.attended, w.gate_up, w.activated, 2 * w.moe});
  out.ffn_features = w.activated;
  for (const LayerSpec& layer : spec.layers) {
    out.num_heads = std::max(out.num_heads, layer.attention.num_heads);
    out.num_kv_heads = std::max(out.num_kv_heads, layer.attention.num_kv_heads);
    out.head_dim = std::max(out.head_dim, layer.attention.head_dim);
  }
  out.vocab_size = spec.vocab_size;
  out.num_experts = w.experts;
  out.experts_per_token = w.experts_per_token;
  out.moe_features = w.moe;
  out.num_layers = std::ssize(spec.layers);
  return out;
}

int64_t Decoder::activation_bytes(const ModelSpec& spec, const Backend& backend, const StepLimits& limits) {
  Arena plan;
  place(spec, limits, backend.fuses_ffn(), plan);
  return plan.used();
}

Decoder::Decoder(const ModelSpec& spec, const ModelWeights& weights, Backend& backend, const StepLimits& limits)
    : spec_(spec),
      backend_(backend),
      storage_(backend.allocate(activation_bytes(spec, backend, limits), "activations", Contents::kUndefined)),
      embed_(&weights.matrix("embed")),
      lm_head_(spec.tied_embeddings ? embed_ : &weights.matrix("lm_head")),
      final_norm_weight_(weights.find_vector("final_norm")) {
  Arena arena({storage_.data(), static_cast<std::size_t>(storage_.size())});
  activations_ = place(spec, limits, backend.fuses_ffn(), arena);
  for (std::size_t i = 0; i < spec.ropes.size(); ++i) {
    const std::vector<float>& inv_freq = spec.ropes[i].inv_freq;
    backend.upload(activations_.inv_freq[i], inv_freq.data(), static_cast<int64_t>(inv_freq.size() * sizeof(float)));
  }
  const std::vector<ExpertUse> unused(spec.layers.size() * narrow<std::size_t>(widths_of(spec).experts));
  backend.upload(activations_.expert_use, unused.data(), static_cast<int64_t>(unused.size() * sizeof(ExpertUse)));
  for (std::size_t i = 0; i < spec.layers.size(); ++i) layers_.push_back(look_up(weights, i));
  backend.reserve(op_limits(spec, limits));
}

// residual += delta (if any), then normed = norm(residual); without a norm the residual itself is the input.
void Decoder::add_and_norm(const NormSpec* norm, const float* weight, bool has_delta, const Activations& a) const {
  if (norm != nullptr) {
    backend_.rms_norm({.x = has_delta ? a.delta : a.residual,
                       .residual = has_delta ? a.residual : Mat{},
                       .weight = weight,
                       .weight_offset = norm->weight_offset,
                       .eps = norm->eps,
                       .group = spec_.hidden_size,
                       .row_ids = nullptr,
                       .y = a.normed});
  } else if (has_delta) {
    backend_.add({.residual = a.residual, .x = a.delta, .gate = {}});
  }
}

float* Decoder::forward(const StepView& step, std::span<const KvLayer> kv, std::span<const int32_t> logit_rows) {
  Activations a = for_step(activations_, step.num_tokens);
  backend_.embed({step.token_ids, step.num_tokens, embed_, spec_.embedding_scale, a.residual});
  for (std::size_t i = 0; i < spec_.ropes.size(); ++i) {
    const RopeSpec& rope = spec_.ropes[i];
    backend_.rope_table({step.positions, step.num_tokens, a.inv_freq[i], static_cast<int64_t>(rope.inv_freq.size()),
                         rope.scale, a.cos[i], a.sin[i]});
  }

  bool has_delta = false;
  for (std::size_t i = 0; i < layers_.size(); ++i) {
    FASTLLM_FAULT_POINT(kKernel, kDevice, "layer");
    const LayerSpec& layer = spec_.layers[i];
    const LayerWeights& w = layers_[i];
    const auto post_norm = [&](const std::optional<NormSpec>& norm, const float* weight) {
      if (!norm) return;
      backend_.rms_norm({.x = a.delta,
                         .residual = {},
                         .weight = weight,
                         .weight_offset = norm->weight_offset,
                         .eps = norm->eps,
                         .group = spec_.hidden_size,
                         .row_ids = nullptr,
                         .y = a.delta});
    };
    // A block without a pre-norm (OLMo 2) reads the residual itself.
    Activations block = a;

    add_and_norm(get(layer.attention_norm), w.attention_norm, has_delta, a);
    block.normed = layer.attention_norm ? a.normed : a.residual;
    attention_block(layer, w, step, kv[i], spec_, backend_, block);
    post_norm(layer.attention_post_norm, w.attention_post_norm);

    add_and_norm(get(layer.ffn_norm), w.ffn_norm, true, a);
    block.normed = layer.ffn_norm ? a.normed : a.residual;
    if (layer.moe) {
      block.expert_use = a.expert_use + static_cast<int64_t>(i) * a.router.cols;
      moe_ffn_block(*layer.moe, w, backend_, block);
    } else {
      dense_ffn_block(*layer.ffn, *w.gate_up, *w.down, a.delta, backend_, block);
    }
    post_norm(layer.ffn_post_norm, w.ffn_post_norm);
    has_delta = true;
  }

  const auto num_rows = static_cast<int64_t>(logit_rows.size());
  if (num_rows == 0) return nullptr;
  const Mat last = a.last.top(num_rows);
  final_norm(logit_rows, last);
  const Mat logits{a.logits, DType::kF32, num_rows, spec_.vocab_size, spec_.vocab_size};
  backend_.linear({last, lm_head_, nullptr, logits});
  if (spec_.final_softcap > 0.0f) backend_.softcap({logits, spec_.final_softcap});
  return a.logits;
}

std::vector<ExpertUse> Decoder::expert_use() const {
  std::vector<ExpertUse> use(spec_.layers.size() * static_cast<std::size_t>(activations_.router.cols));
  backend_.download(use.data(), activations_.expert_use, static_cast<int64_t>(use.size() * sizeof(ExpertUse)));
  return use;
}

Mat Decoder::hidden_states(std::span<const int32_t> token_rows) {
  // The blocks' input: free after the last of them, and as large as the largest step.
  const Mat y = activations_.normed.top(static_cast<int64_t>(token_rows.size()));
  final_norm(token_rows, y);
  return y;
}

// The sum of residual and the last block's output is not written back: it can be read again.
void Decoder::final_norm(std::span<const int32_t> token_rows, const Mat& y) const {
  backend_.rms_norm({.x = activations_.delta,
                     .residual = activations_.residual,
                     .weight = final_norm_weight_,
                     .weight_offset = spec_.final_norm.weight_offset,
                     .eps = spec_.final_norm.eps,
                     .group = spec_.hidden_size,
                     .row_ids = token_rows.data(),
                     .y = y});
}

}  // namespace fastllm
