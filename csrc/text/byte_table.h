// Token id -> bytes, built once per tokenizer by Python. Immutable; shared by all sequences of an engine.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace fastllm {

class ByteTable : public std::enable_shared_from_this<ByteTable> {
 public:
  // tokens[i] are the bytes of id i; is_special[i] != 0 marks tokens that skip_special leaves out.
  // Throws kInvalidRequest if the lists differ in length.
  ByteTable(const std::vector<std::string>& tokens, const std::vector<uint8_t>& is_special);

  // Bytes of a token; empty for an id outside the table.
  [[nodiscard]] std::string_view bytes(int32_t token) const;
  [[nodiscard]] bool is_special(int32_t token) const;
  [[nodiscard]] int64_t size() const { return static_cast<int64_t>(is_special_.size()); }

 private:
  std::string blob_;
  std::vector<std::size_t> start_;  // [size + 1]
  std::vector<uint8_t> is_special_;
};

}  // namespace fastllm
