#include "model/spec.h"

#include <cmath>

namespace fastllm {
namespace {

constexpr int64_t kMaxLayers = 4096;
constexpr int64_t kMaxSize = int64_t{1} << 31;

class Checker {
 public:
  explicit Checker(std::string where) : where_(std::move(where)) {}

  void in_range(const char* field, int64_t value, int64_t low, int64_t high) const {
    if (value < low || value > high) {
      fail(ErrorKind::kCheckpoint, where_, field, " = ", value, " is outside [", low, ", ", high, "]");
    }
  }
  void positive(const char* field, float value) const {
    if (!(std::isfinite(value) && value > 0.0f)) {
      fail(ErrorKind::kCheckpoint, where_, field, " = ", value, " is not a positive number");
    }
  }
  void not_negative(const char* field, float value) const {
    if (!(std::isfinite(value) && value >= 0.0f)) {
      fail(ErrorKind::kCheckpoint, where_, field, " = ", value, " is negative or not a number");
    }
  }

 private:
  std::string where_;
};

void check_attention(const Checker& c, const AttentionSpec& a, const ModelSpec& spec, const std::string& where) {
  c.in_range("attention.num_heads", a.num_heads, 1, 65536);
  c.in_range("attention.num_kv_heads", a.num_kv_heads, 1, a.num_heads);
  c.in_range("attention.head_dim", a.head_dim, 2, 1024);
  c.in_range("attention.window", a.window, 0, kMaxSize);
  c.in_range("attention.rope_idx", a.rope_idx, 0, static_cast<int64_t>(spec.ropes.size()) - 1);
  c.positive("attention.scale", a.scale);
  c.not_negative("attention.softcap", a.softcap);
  if (a.num_heads % a.num_kv_heads != 0) {
    fail(ErrorKind::kCheckpoint, where, "num_heads = ", a.num_heads,
         " is not a multiple of num_kv_heads = ", a.num_kv_heads);
  }
  if (a.head_dim % 2 != 0) fail(ErrorKind::kUnsupportedModel, where, "head_dim = ", a.head_dim, " is odd");
  const auto rotary_dim = 2 * static_cast<int64_t>(spec.ropes[static_cast<std::size_t>(a.rope_idx)].inv_freq.size());
  if (rotary_dim > a.head_dim) {
    fail(ErrorKind::kCheckpoint, where, "rotary dimensions (", rotary_dim, ") exceed head_dim = ", a.head_dim);
  }
}

void check_layer(const LayerSpec& layer, const ModelSpec& spec, std::size_t idx) {
  const std::string where = spec.architecture + " layer " + std::to_string(idx) + ": ";
  const Checker c(where);
  check_attention(c, layer.attention, spec, where);
  if (layer.ffn.has_value() == layer.moe.has_value()) {
    fail(ErrorKind::kCheckpoint, where, "exactly one of ffn and moe must be set");
  }
  if (layer.ffn) c.in_range("ffn.ffn_dim", layer.ffn->ffn_dim, 1, kMaxSize);
  if (layer.moe) {
    c.in_range("moe.num_experts", layer.moe->num_experts, 1, 65536);
    c.in_range("moe.experts_per_token", layer.moe->experts_per_token, 1, layer.moe->num_experts);
    c.in_range("moe.ffn_dim", layer.moe->ffn_dim, 1, kMaxSize);
    c.in_range("moe.shared_ffn_dim", layer.moe->shared_ffn_dim, 0, kMaxSize);
  }
  for (const auto* norm : {&layer.attention_norm, &layer.attention_post_norm, &layer.ffn_norm, &layer.ffn_post_norm}) {
    if (*norm) c.not_negative("norm.eps", (*norm)->eps);
  }
}

}  // namespace

void check(const ModelSpec& spec) {
  const Checker c(spec.architecture + ": ");
  c.in_range("hidden_size", spec.hidden_size, 1, kMaxSize);
  c.in_range("vocab_size", spec.vocab_size, 1, kMaxSize - 1);
  c.in_range("max_position", spec.max_position, 1, kMaxSize - 1);
  c.in_range("number of layers", static_cast<int64_t>(spec.layers.size()), 1, kMaxLayers);
  c.in_range("number of rotations", static_cast<int64_t>(spec.ropes.size()), 1, kMaxLayers);
  c.not_negative("final_softcap", spec.final_softcap);
  c.not_negative("final_norm.eps", spec.final_norm.eps);
  for (const RopeSpec& rope : spec.ropes) {
    c.positive("rope.scale", rope.scale);
    for (const float f : rope.inv_freq) c.not_negative("rope.inv_freq", f);
  }
  for (std::size_t i = 0; i < spec.layers.size(); ++i) check_layer(spec.layers[i], spec, i);
}

}  // namespace fastllm
