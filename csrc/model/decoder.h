// A decoder-only transformer, run through the operations of a backend. One short loop over the layers of a ModelSpec.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "core/buffer.h"
#include "model/spec.h"
#include "model/weight_slots.h"
#include "ops/ops.h"

namespace fastllm {

// Largest step that will be asked for.
struct StepLimits {
  int64_t max_tokens = 0;      // T
  int64_t max_seqs = 0;        // S
  int64_t max_logit_rows = 0;  // R
  int64_t max_pages_per_seq = 0;
};

OpLimits op_limits(const ModelSpec& spec, const StepLimits& limits);

// Activations of one step, all float32. Buffers of consecutive blocks that are never alive together share nothing:
// their sum is small beside the weights, and the plan stays readable.
struct Activations {
  Mat residual;                     // [T, E]
  Mat normed;                       // [T, E] input of a block
  Mat delta;                        // [T, E] output of a block
  Mat qkv;                          // [T, (H + 2G) * D]
  Mat attended;                     // [T, H * D]
  Mat gate_up;                      // [T, 2F]
  Mat activated;                    // [T, F]
  Mat router;                       // [T, X]
  Mat shared;                       // [T, E] output of the shared expert
  Mat shared_gate;                  // [T, 1]
  Mat last;                         // [R, E]
  float* logits = nullptr;          // [R, V]
  int32_t* experts = nullptr;       // [T, k]
  float* expert_weights = nullptr;  // [T, k]
  ExpertUse* expert_use = nullptr;  // [L, X] of all steps, and of its layer in a block
  std::vector<float*> cos;          // per rotation, [T, rotary_dim / 2]
  std::vector<float*> sin;
  std::vector<float*> inv_freq;  // per rotation, [rotary_dim / 2]: a constant that lives beside them
};

// Weights of one layer, looked up once.
struct LayerWeights {
  const PackedWeight *qkv, *o, *gate_up, *down;
  const PackedWeight *router, *expert_gate_up, *expert_down, *shared_gate_up, *shared_down, *shared_gate;
  const float *qkv_bias, *o_bias, *sinks, *q_norm, *k_norm;
  const float *router_bias, *expert_gate_up_bias, *expert_down_bias;
  const float *attention_norm, *attention_post_norm, *ffn_norm, *ffn_post_norm;
};

// Thread contract: one forward() at a time.
class Decoder {
 public:
  Decoder(const ModelSpec& spec, const ModelWeights& weights, Backend& backend, const StepLimits& limits);

  // Activation bytes of a decoder with these limits (the backend's own scratch comes on top).
  static int64_t activation_bytes(const ModelSpec& spec, const Backend& backend, const StepLimits& limits);

  // Runs the step, writes K/V into `kv` (one per layer), returns logits [R, V] of the token rows `logit_rows` (int32 in
  // memory of the backend, as the logits), valid until the next call. R = 0 returns nullptr.
  float* forward(const StepView& step, std::span<const KvLayer> kv, std::span<const int32_t> logit_rows);
  // What forward() returns for R > 0.
  [[nodiscard]] float* logits() const { return activations_.logits; }
  // Final hidden states [rows, E] of token rows of the last forward(): what the output head reads, normed. Valid until
  // the next call of either.
  Mat hidden_states(std::span<const int32_t> token_rows);
  // How much each expert was used so far, [L, X]; empty for a model without experts, zeros for layers without.
  [[nodiscard]] std::vector<ExpertUse> expert_use() const;

 private:
  void add_and_norm(const NormSpec* norm, const float* weight, bool has_delta, const Activations& a) const;
  void final_norm(std::span<const int32_t> token_rows, const Mat& y) const;

  const ModelSpec& spec_;
  Backend& backend_;
  DeviceMemory storage_;
  Activations activations_;
  std::vector<LayerWeights> layers_;
  const PackedWeight* embed_;
  const PackedWeight* lm_head_;
  const float* final_norm_weight_;
};

// The blocks, one file each under blocks/. Input in a.normed, output in a.delta; rows = tokens of the step.
void attention_block(const LayerSpec& layer, const LayerWeights& w, const StepView& step, const KvLayer& kv,
                     const ModelSpec& spec, Backend& backend, const Activations& a);
void dense_ffn_block(const DenseFfnSpec& ffn, const PackedWeight& gate_up, const PackedWeight& down, const Mat& out,
                     Backend& backend, const Activations& a);
void moe_ffn_block(const MoeSpec& moe, const LayerWeights& w, Backend& backend, const Activations& a);

}  // namespace fastllm
