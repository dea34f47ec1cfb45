// The K/V bytes of all layers: one mapping, layer after layer, page after page. What a page holds is the backend's
// matter.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "ops/ops.h"

namespace fastllm {

class KvStorage {
 public:
  // `layers`: one KvSpec per layer of the model.
  KvStorage(std::span<const KvSpec> layers, int64_t num_pages, Backend& backend);

  // Bytes of one page summed over all layers.
  static int64_t page_bytes(std::span<const KvSpec> layers, const Backend& backend);

  [[nodiscard]] std::span<const KvLayer> layers() const { return layers_; }

 private:
  DeviceMemory storage_;
  std::vector<KvLayer> layers_;
};

}  // namespace fastllm
