#include "text/utf8_stream.h"

#include <cstdint>

namespace fastllm {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

uint8_t byte_at(std::string_view text, std::size_t i) { return static_cast<uint8_t>(text[i]); }

// Length of the character that a first byte announces; 0: no character begins so.
std::size_t announced_length(uint8_t first) {
  if (first < 0x80) return 1;
  if (first >= 0xC2 && first <= 0xDF) return 2;
  if (first >= 0xE0 && first <= 0xEF) return 3;
  if (first >= 0xF0 && first <= 0xF4) return 4;
  return 0;
}

// May `second` follow `first`? Excludes overlong forms, surrogates and what lies above U+10FFFF.
bool is_valid_second(uint8_t first, uint8_t second) {
  const uint8_t low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  const uint8_t high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  return second >= low && second <= high;
}

struct Scan {
  std::size_t length;  // bytes that belong together
  bool is_complete;    // they are a character
  bool is_cut;         // they are the beginning of one, and the text ends here
};

Scan scan(std::string_view text) {
  const uint8_t first = byte_at(text, 0);
  const std::size_t length = announced_length(first);
  if (length == 0) return {1, false, false};
  std::size_t i = 1;
  while (i < length && i < text.size()) {
    const uint8_t next = byte_at(text, i);
    const bool is_valid = i == 1 ? is_valid_second(first, next) : (next & 0xC0) == 0x80;
    if (!is_valid) return {i, false, false};
    ++i;
  }
  return {i, i == length, i < length};
}

}  // namespace

void Utf8Stream::push(std::string_view bytes, std::string& out) {
  pending_ += bytes;
  std::string_view rest = pending_;
  while (!rest.empty()) {
    const Scan s = scan(rest);
    if (s.is_cut) break;
    out += s.is_complete ? rest.substr(0, s.length) : kReplacement;
    rest.remove_prefix(s.length);
  }
  pending_.erase(0, pending_.size() - rest.size());
}

void Utf8Stream::finish(std::string& out) {
  if (!pending_.empty()) out += kReplacement;
  pending_.clear();
}

}  // namespace fastllm
