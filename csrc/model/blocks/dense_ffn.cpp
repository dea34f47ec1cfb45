// Gated feed-forward: out = Wdown * act(Wgate_up * normed).
#include "model/decoder.h"

namespace fastllm {

void dense_ffn_block(const DenseFfnSpec& ffn, const PackedWeight& gate_up, const PackedWeight& down, const Mat& out,
                     Backend& backend, const Activations& a) {
  const Mat both = a.gate_up.columns(0, 2 * ffn.ffn_dim);
  const Mat activated = a.activated.columns(0, ffn.ffn_dim);
  backend.linear({a.normed, &gate_up, nullptr, both});
  backend.gated_activation({both, ffn.activation, activated});
  backend.linear({activated, &down, nullptr, out});
}

}  // namespace fastllm
