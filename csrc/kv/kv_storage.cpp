#include "kv/kv_storage.h"

#include "core/checked.h"

namespace fastllm {

int64_t KvStorage::page_bytes(std::span<const KvSpec> layers, const Backend& backend) {
  int64_t bytes = 0;
  for (const KvSpec& spec : layers) bytes = checked_add(bytes, backend.kv_page_bytes(spec), "KV page");
  return bytes;
}

KvStorage::KvStorage(std::span<const KvSpec> layers, int64_t num_pages, Backend& backend)
    : storage_(backend.allocate(checked_mul(page_bytes(layers, backend), num_pages, "KV pages"), "KV pages",
                                Contents::kUndefined)) {
  std::byte* at = storage_.data();
  for (const KvSpec& spec : layers) {
    const int64_t bytes = backend.kv_page_bytes(spec);
    layers_.push_back({spec, at, bytes, num_pages});
    at += bytes * num_pages;
  }
}

}  // namespace fastllm
