// Token ids of one sequence -> valid UTF-8: the table's bytes, joined, decoded as Python's
// bytes.decode("utf-8", errors="replace") would decode all of them at once (text/utf8_stream.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "text/byte_table.h"
#include "text/utf8_stream.h"

namespace fastllm {

class Detokenizer {
 public:
  // skip_special: special tokens have no text. strip_first_space: a SentencePiece text begins with a space that its
  // author did not write; it is left out if it is the very first character. Not for a text that continues a prompt.
  Detokenizer(std::shared_ptr<const ByteTable> table, bool skip_special, bool strip_first_space)
      : table_(std::move(table)), skips_special_(skip_special), strips_space_(strip_first_space) {}

  // Appends to `out` the text that is now certain. Ids outside the table have no text.
  void push(int32_t token, std::string& out) {
    if (skips_special_ && table_->is_special(token)) return;
    std::string_view bytes = table_->bytes(token);
    if (bytes.empty()) return;
    if (strips_space_ && bytes.front() == ' ') bytes.remove_prefix(1);
    strips_space_ = false;
    characters_.push(bytes, out);
  }

  // The sequence is over: an incomplete character becomes U+FFFD.
  void flush(std::string& out) { characters_.finish(out); }

 private:
  std::shared_ptr<const ByteTable> table_;
  Utf8Stream characters_;
  bool skips_special_;
  bool strips_space_;
};

}  // namespace fastllm
