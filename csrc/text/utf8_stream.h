// Bytes in any pieces -> valid UTF-8. An incomplete character is held back (at most 3 bytes); bytes that cannot belong
// to a character become U+FFFD, one per maximal subpart (Unicode 15, section 3.9), as Python's errors="replace" does.
#pragma once

#include <string>
#include <string_view>

namespace fastllm {

class Utf8Stream {
 public:
  // Appends to `out` what the bytes so far make certain.
  void push(std::string_view bytes, std::string& out);
  // The text is over: an incomplete character becomes U+FFFD.
  void finish(std::string& out);

 private:
  std::string pending_;
};

}  // namespace fastllm
