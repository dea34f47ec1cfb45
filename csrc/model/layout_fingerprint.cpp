#include "model/layout_fingerprint.h"

#include <set>
#include <span>
#include <string>
#include <vector>

#include "core/checksum.h"
#include "model/pack_floats.h"
#include "model/weight_slots.h"

namespace fastllm {
namespace {

std::string text_of(const WeightDesc& d) {
  return std::to_string(d.n) + " " + std::to_string(d.k) + " " + std::to_string(d.num_experts) + " " +
         name_of(d.format) + " " + std::to_string(d.group) + " " + name_of(d.scale_dtype) + " " +
         (d.has_zeros ? "zeros " : "") + name_of(d.act);
}

uint64_t add(uint64_t sum, const std::string& text) { return checksum(std::as_bytes(std::span(text)), sum); }

// The packed bytes of a matrix of this format with no round sizes. Its numbers differ, and so do the sizes and offsets
// of its groups: the order of codes, scales and zeros in memory shows in the sum, as does how each of them is rounded.
uint64_t add_probe(uint64_t sum, WeightDesc desc, Backend& backend) {
  desc.n = 75;
  desc.k = desc.group == 0 ? 198 : 3 * desc.group;
  desc.num_experts = 2;
  const DeviceMemory memory = backend.allocate(backend.packed_bytes(desc), "layout probe", Contents::kZero);
  std::vector<float> values(static_cast<std::size_t>(desc.n * desc.k));
  uint64_t state = 1;
  const auto next = [&state] { return static_cast<int>((state = state * 6364136223846793005u + 1) >> 40); };
  for (int64_t expert = 0; expert < desc.num_experts; ++expert) {
    float size = 0.0f;
    int low = 0;
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (static_cast<int64_t>(i) % (desc.k / 3) == 0) {
        size = static_cast<float>(next() % 64 + 1);
        low = next() % 256;
      }
      values[i] = static_cast<float>(next() % 256 - low) * size;
    }
    pack_floats({desc, memory.data()}, {values.data(), DType::kF32, desc.k, 1, 0, desc.n, expert}, backend);
  }
  std::vector<std::byte> packed(static_cast<std::size_t>(memory.size()));
  backend.download(packed.data(), memory.data(), memory.size());
  return checksum(packed, sum);
}

}  // namespace

uint64_t layout_fingerprint(const ModelSpec& spec, const WeightPlan& plan, Backend& backend) {
  uint64_t sum = 0;
  std::set<std::string> probed;
  for (const MatrixShape& shape : matrix_shapes(spec)) {
    WeightDesc desc = desc_of(plan, shape);
    sum = add(sum, shape.name + " " + text_of(desc));
    desc.n = desc.k = desc.num_experts = 0;
    if (probed.insert(text_of(desc)).second) sum = add_probe(sum, desc, backend);
  }
  return add(sum, std::to_string(ModelWeights::bytes(spec, plan, backend)));
}

}  // namespace fastllm
