// Bytes that the steps of a model must read from memory, each once: what the achieved share of bandwidth is made of.
//
//   weights  every matrix of a layer; of experts those that a row of the step chose; the output head where a row wants
//            logits. An embedding that is not the head is only looked up.
//   K/V      of each sequence and layer the positions that its new tokens attend to: the context, or less in a window.
//
// Activations, norms and biases are small beside these and left out.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/spec.h"
#include "model/weight_slots.h"
#include "ops/ops.h"

namespace fastllm {

class ReadBytes {
 public:
  // `kv_specs`: one per layer, as the K/V is held.
  ReadBytes(const ModelSpec& spec, const ModelWeights& weights, std::span<const KvSpec> kv_specs,
            const Backend& backend);

  // Without experts.
  [[nodiscard]] int64_t of_step(const StepView& step, bool wants_logits) const;
  // Of all steps behind these counts, [L, X].
  [[nodiscard]] int64_t of_experts(std::span<const ExpertUse> use) const;

 private:
  struct Window {
    int64_t size = 0;        // 0: whole context
    int64_t page_bytes = 0;  // of one page in all layers with this window
  };

  int64_t head_ = 0;
  int64_t layers_ = 0;
  std::vector<int64_t> expert_;  // [L] of one expert; 0 for layers without
  std::vector<Window> windows_;
  int64_t page_size_;
};

}  // namespace fastllm
