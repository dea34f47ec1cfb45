// Mixture of experts: delta = sum over the chosen experts of weight * expert(normed), plus sigmoid(gate) *
// shared(normed).
#include "model/decoder.h"

namespace fastllm {

void moe_ffn_block(const MoeSpec& moe, const LayerWeights& w, Backend& backend, const Activations& a) {
  const Mat router = a.router.columns(0, moe.num_experts);
  backend.linear({a.normed, w.router, w.router_bias, router});
  backend.moe_route(
      {router, moe.experts_per_token, moe.score, moe.renormalize, moe.weight_scale, a.experts, a.expert_weights});
  backend.moe_ffn({a.normed, moe.experts_per_token, a.experts, a.expert_weights, w.expert_gate_up, w.expert_down,
                   w.expert_gate_up_bias, w.expert_down_bias, moe.activation, a.delta, a.expert_use});
  if (moe.shared_ffn_dim > 0) {
    dense_ffn_block({moe.shared_ffn_dim, moe.activation}, *w.shared_gate_up, *w.shared_down, a.shared, backend, a);
    backend.linear({a.normed, w.shared_gate, nullptr, a.shared_gate});
    backend.add({a.delta, a.shared, a.shared_gate});
  }
}

}  // namespace fastllm
