// The text of one sequence as it grows: tokens -> bytes -> whole characters -> up to a stop string.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "text/byte_table.h"
#include "text/detokenizer.h"
#include "text/stop_matcher.h"

namespace fastllm {

class OutputText {
 public:
  struct Piece {
    std::string text;  // new text that is certain, valid UTF-8
    bool stopped = false;
    int stop_index = -1;  // which stop string
  };

  // include_stop: the stop string stays in the text. For the other two see Detokenizer.
  OutputText(std::shared_ptr<const ByteTable> table, std::vector<std::string> stop, bool include_stop,
             bool skip_special, bool strip_first_space = false);

  // After a piece with `stopped` the text is over: later pieces are empty and stopped too.
  Piece push(int32_t token);
  // The sequence ended without a stop string: what was held back comes out.
  Piece finish();

 private:
  Piece feed(std::string_view characters);

  Detokenizer detokenizer_;
  StopMatcher matcher_;
};

}  // namespace fastllm
