#include "engine/read_bytes.h"

#include <algorithm>
#include <string>

namespace fastllm {

ReadBytes::ReadBytes(const ModelSpec& spec, const ModelWeights& weights, std::span<const KvSpec> kv_specs,
                     const Backend& backend)
    : expert_(spec.layers.size(), 0), page_size_(backend.page_size()) {
  const std::string head = spec.tied_embeddings ? "embed" : "lm_head";
  for (const auto& [name, slot] : weights.matrices()) {
    if (name == head) {
      head_ = slot.bytes;
    } else if (name.starts_with("layers.")) {
      const auto layer = static_cast<std::size_t>(std::stoll(name.substr(std::string("layers.").size())));
      if (name.find(".experts.") == std::string::npos) {
        layers_ += slot.bytes;
      } else {
        expert_[layer] += slot.bytes / slot.weight.desc.num_experts;
      }
    }
  }
  for (std::size_t i = 0; i < spec.layers.size(); ++i) {
    const int64_t size = spec.layers[i].attention.window;
    auto found = std::ranges::find(windows_, size, &Window::size);
    if (found == windows_.end()) found = windows_.insert(found, {size, 0});
    found->page_bytes += backend.kv_page_bytes(kv_specs[i]);
  }
}

int64_t ReadBytes::of_step(const StepView& step, bool wants_logits) const {
  int64_t bytes = layers_ + (wants_logits ? head_ : 0);
  for (const Window& window : windows_) {
    int64_t positions = 0;
    for (int64_t s = 0; s < step.num_seqs; ++s) {
      const int64_t context = step.context_len[s];
      const int64_t num_new = step.query_start[s + 1] - step.query_start[s];
      positions += window.size == 0 ? context : std::min(context, window.size + num_new - 1);
    }
    bytes += positions * window.page_bytes / page_size_;
  }
  return bytes;
}

int64_t ReadBytes::of_experts(std::span<const ExpertUse> use) const {
  const std::size_t num_experts = use.size() / expert_.size();
  int64_t bytes = 0;
  for (std::size_t i = 0; i < use.size(); ++i) bytes += use[i].num_reads * expert_[i / num_experts];
  return bytes;
}

}  // namespace fastllm
