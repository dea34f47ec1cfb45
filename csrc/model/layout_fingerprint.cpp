#include "model/layout_fingerprint.h"

#include <set>
#include <span>
#include <string>
#include <vector>

#include "core/checksum.h"
#include "model/weight_slots.h"
#include "ops/quantize_rows.h"

namespace fastllm {
namespace {

std::string text_of(const WeightDesc& d) {
  return std::to_string(d.n) + " " + std::to_string(d.k) + " " + std::to_string(d.num_experts) + " " +
         name_of(d.format) + " " + std::to_string(d.group) + " " + name_of(d.scale_dtype) + " " +
         (d.has_zeros ? "zeros " : "") + name_of(d.act);
}

uint64_t add(uint64_t sum, const std::string& text) { return checksum(std::as_bytes(std::span(text)), sum); }

// The packed bytes of a matrix of this format with no round sizes, filled with numbers that are all different.
uint64_t add_probe(uint64_t sum, WeightDesc desc, Backend& backend) {
  desc.n = 75;
  desc.k = desc.group == 0 ? 198 : 3 * desc.group;
  desc.num_experts = 2;
  const DeviceMemory memory = backend.allocate(backend.packed_bytes(desc), "layout probe", Contents::kZero);
  const PackedWeight to{desc, memory.data()};
  const auto numbers = static_cast<std::size_t>(desc.n * desc.k);
  const auto parameters = static_cast<std::size_t>(desc.n * desc.groups());
  std::vector<float> values(numbers);
  std::vector<uint8_t> codes(numbers);
  std::vector<float> scales(parameters);
  std::vector<uint8_t> zeros(parameters);
  std::vector<uint8_t> rounded(numbers);
  std::vector<float> rounded_scales(parameters);
  std::vector<uint8_t> rounded_zeros(parameters);
  for (int64_t expert = 0; expert < desc.num_experts; ++expert) {
    uint64_t state = static_cast<uint64_t>(expert) + 1;
    const auto next = [&state] { return static_cast<uint32_t>((state = state * 6364136223846793005u + 1) >> 40); };
    for (float& x : values) x = static_cast<float>(next() % 255 + 1);
    for (uint8_t& x : codes) x = static_cast<uint8_t>(next() & (desc.format == WeightFormat::kInt4 ? 15 : 255));
    for (float& x : scales) x = static_cast<float>(next() % 255 + 1);
    for (uint8_t& x : zeros) x = static_cast<uint8_t>(next() & 15);
    if (is_integer(desc.format)) {
      quantize_rows({desc.format, desc.group, desc.scale_dtype, desc.has_zeros, true}, values.data(), desc.n, desc.k,
                    {rounded.data(), rounded_scales.data(), desc.has_zeros ? rounded_zeros.data() : nullptr});
      sum = checksum(std::as_bytes(std::span(rounded)), sum);
      backend.pack_codes(to, {codes.data(), scales.data(), desc.has_zeros ? zeros.data() : nullptr, 0, desc.n, expert});
    } else {
      backend.pack(to, {values.data(), DType::kF32, desc.k, 1, 0, desc.n, expert});
    }
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
