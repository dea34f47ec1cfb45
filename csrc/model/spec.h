// What a model is, as data. Python reads config.json into this; the decoder runs it. A value that changes between
// architectures is a field of the block that reads it; a change of data flow would be a new block.
// Each struct lists its fields once, in visit(): bindings, JSON and printing derive from that.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ops/ops.h"

namespace fastllm {

// y = x / rms(x) * (w + weight_offset)
struct NormSpec {
  float eps = 1e-6f;
  float weight_offset = 0.0f;
};

// inv_freq already holds every scaling (linear, NTK, YaRN, llama3, longrope); scale multiplies cos and sin.
struct RopeSpec {
  std::vector<float> inv_freq;  // [rotary_dim / 2]; empty: no rotation
  float scale = 1.0f;
};

enum class QkNorm : uint8_t {
  kNone,
  kPerHead,  // over D, one weight [D] (Qwen3, Gemma 3)
  kFull,     // over H * D and G * D (OLMo 2)
};

struct AttentionSpec {
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  float scale = 1.0f;    // of q . k, usually 1 / sqrt(D)
  int64_t window = 0;    // 0: whole context
  float softcap = 0.0f;  // 0: none
  bool has_qkv_bias = false;
  bool has_output_bias = false;
  bool has_sinks = false;
  QkNorm qk_norm = QkNorm::kNone;
  int64_t rope_idx = 0;  // into ModelSpec::ropes
};

struct DenseFfnSpec {
  int64_t ffn_dim = 0;  // F
  ActivationSpec activation;
};

struct MoeSpec {
  int64_t num_experts = 0;        // X
  int64_t experts_per_token = 0;  // k
  int64_t ffn_dim = 0;            // F of one expert
  ActivationSpec activation;
  RouteScore score = RouteScore::kSoftmax;
  bool renormalize = false;
  float weight_scale = 1.0f;
  bool has_router_bias = false;
  bool has_expert_bias = false;
  int64_t shared_ffn_dim = 0;  // 0: no shared expert; its output is multiplied by sigmoid(gate(x))
};

// residual += post_norm(mixer(pre_norm(residual))); the same for the ffn. An absent norm is the identity.
struct LayerSpec {
  AttentionSpec attention;
  std::optional<DenseFfnSpec> ffn;  // exactly one of ffn, moe
  std::optional<MoeSpec> moe;
  std::optional<NormSpec> attention_norm;
  std::optional<NormSpec> attention_post_norm;
  std::optional<NormSpec> ffn_norm;
  std::optional<NormSpec> ffn_post_norm;
  NormSpec qk_norm;  // read when attention.qk_norm is not kNone
};

struct ModelSpec {
  std::string architecture;  // config.json's name, for messages
  int64_t hidden_size = 0;   // E
  int64_t vocab_size = 0;    // V
  int64_t max_position = 0;  // longest context the rotations were made for
  float embedding_scale = 1.0f;
  float final_softcap = 0.0f;
  bool tied_embeddings = false;
  NormSpec final_norm;
  std::vector<RopeSpec> ropes;
  std::vector<LayerSpec> layers;
};

template <class Visitor>
void visit(Visitor& v, NormSpec& s) {
  v("eps", s.eps);
  v("weight_offset", s.weight_offset);
}
template <class Visitor>
void visit(Visitor& v, RopeSpec& s) {
  v("inv_freq", s.inv_freq);
  v("scale", s.scale);
}
template <class Visitor>
void visit(Visitor& v, ActivationSpec& s) {
  v("kind", s.kind);
  v("alpha", s.alpha);
  v("limit", s.limit);
}
template <class Visitor>
void visit(Visitor& v, AttentionSpec& s) {
  v("num_heads", s.num_heads);
  v("num_kv_heads", s.num_kv_heads);
  v("head_dim", s.head_dim);
  v("scale", s.scale);
  v("window", s.window);
  v("softcap", s.softcap);
  v("has_qkv_bias", s.has_qkv_bias);
  v("has_output_bias", s.has_output_bias);
  v("has_sinks", s.has_sinks);
  v("qk_norm", s.qk_norm);
  v("rope_idx", s.rope_idx);
}
template <class Visitor>
void visit(Visitor& v, DenseFfnSpec& s) {
  v("ffn_dim", s.ffn_dim);
  v("activation", s.activation);
}
template <class Visitor>
void visit(Visitor& v, MoeSpec& s) {
  v("num_experts", s.num_experts);
  v("experts_per_token", s.experts_per_token);
  v("ffn_dim", s.ffn_dim);
  v("activation", s.activation);
  v("score", s.score);
  v("renormalize", s.renormalize);
  v("weight_scale", s.weight_scale);
  v("has_router_bias", s.has_router_bias);
  v("has_expert_bias", s.has_expert_bias);
  v("shared_ffn_dim", s.shared_ffn_dim);
}
template <class Visitor>
void visit(Visitor& v, LayerSpec& s) {
  v("attention", s.attention);
  v("ffn", s.ffn);
  v("moe", s.moe);
  v("attention_norm", s.attention_norm);
  v("attention_post_norm", s.attention_post_norm);
  v("ffn_norm", s.ffn_norm);
  v("ffn_post_norm", s.ffn_post_norm);
  v("qk_norm", s.qk_norm);
}
template <class Visitor>
void visit(Visitor& v, ModelSpec& s) {
  v("architecture", s.architecture);
  v("hidden_size", s.hidden_size);
  v("vocab_size", s.vocab_size);
  v("max_position", s.max_position);
  v("embedding_scale", s.embedding_scale);
  v("final_softcap", s.final_softcap);
  v("tied_embeddings", s.tied_embeddings);
  v("final_norm", s.final_norm);
  v("ropes", s.ropes);
  v("layers", s.layers);
}

// Throws kUnsupportedModel / kCheckpoint naming the field: sizes positive, heads divide, exactly one of ffn and moe,
// ...
void check(const ModelSpec& spec);

}  // namespace fastllm
