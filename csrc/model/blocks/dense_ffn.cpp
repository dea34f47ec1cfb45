// Gated feed-forward: out = Wdown * act(Wgate_up * normed).
#include "model/decoder.h"

namespace fastllm {

void dense_ffn_block(const DenseFfnSpec& ffn, const PackedWeight& gate_up, const PackedWeight& down, const Mat& out,
                     Backend& backend, const Activations& a) {
  backend.dense_ffn({.x = a.normed,
                     .gate_up = &gate_up,
                     .down = &down,
                     .activation = ffn.activation,
                     .gate_up_y = a.gate_up.columns(0, 2 * ffn.ffn_dim),
                     .activated = a.activated.columns(0, ffn.ffn_dim),
                     .y = out});
}

}  // namespace fastllm
