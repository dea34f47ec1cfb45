// Stop strings over a text that arrives in pieces. Text that may still become part of a stop string is held back, so a
// stop string is never visible, whatever the pieces. The match that ends first wins; of those that end together, the longest.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace fastllm {

class StopMatcher {
 public:
  // Empty stop strings are ignored. keeps_stop: the stop string stays in the text.
  StopMatcher(std::vector<std::string> stops, bool keeps_stop);

  // Appends to `out` what can safely be shown. Returns the index of the stop string that ended the text, or -1.
  // After a match nothing more may be fed.
  int feed(std::string_view text, std::string& out);
  // The text ended otherwise: what was held back is shown.
  void finish(std::string& out);

 private:
  [[nodiscard]] std::size_t held_back() const;

  std::vector<std::string> stops_;
  bool keeps_stop_;
  std::string pending_;  // not shown yet
};

}  // namespace fastllm
