// Stop strings over a text that arrives in pieces.
//
// The text is read byte by byte. For each stop string the matcher keeps how long a beginning of it the text ends with
// (Knuth-Morris-Pratt), so a byte costs O(number of stop strings), whatever they look like, and the outcome cannot
// depend on how the text is cut. The longest of those beginnings may still become a stop string: it is held back, all
// else is shown at once; so no part of a stop string is ever visible.
// Which match counts: the one that ends first; of those that end together, the longest; of equal ones, the first given.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace fastllm {

class StopMatcher {
 public:
  // Empty stop strings match nothing. keeps_stop: the stop string stays at the end of the text.
  StopMatcher(std::vector<std::string> stops, bool keeps_stop);

  // Appends to `out` what can safely be shown. Returns the index of the stop string that ended the text, or -1.
  // After a match nothing more comes out and the same index is returned.
  int feed(std::string_view text, std::string& out);
  // The text ended otherwise: what was held back is shown.
  void finish(std::string& out);

 private:
  struct Stop {
    std::string text;
    std::vector<uint32_t> fallback;  // [i]: longest proper beginning of text that text[0 .. i] ends with
    std::size_t matched = 0;         // bytes of `text` that the stream ends with
  };

  // Reads a byte; the index of the stop string that it completes, or -1.
  int step(char byte);
  [[nodiscard]] std::size_t held_back() const;

  std::vector<Stop> stops_;
  std::string pending_;  // not shown yet: the end of the stream, held_back() long between calls
  int stopped_by_ = -1;
  bool keeps_stop_;
};

}  // namespace fastllm
