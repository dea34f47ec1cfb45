#include "text/byte_table.h"

#include "core/error.h"

namespace fastllm {

ByteTable::ByteTable(const std::vector<std::string>& tokens, const std::vector<uint8_t>& is_special)
    : is_special_(is_special) {
  if (tokens.size() != is_special.size()) {
    fail(ErrorKind::kInvalidRequest, "byte table: ", tokens.size(), " tokens, but ", is_special.size(), " flags");
  }
  start_.reserve(tokens.size() + 1);
  for (const std::string& token : tokens) {
    start_.push_back(blob_.size());
    blob_ += token;
  }
  start_.push_back(blob_.size());
}

std::string_view ByteTable::bytes(int32_t token) const {
  if (token < 0 || token >= size()) return {};
  const auto i = static_cast<std::size_t>(token);
  return std::string_view(blob_).substr(start_[i], start_[i + 1] - start_[i]);
}

bool ByteTable::is_special(int32_t token) const {
  return token >= 0 && token < size() && is_special_[static_cast<std::size_t>(token)] != 0;
}

}  // namespace fastllm
