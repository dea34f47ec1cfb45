// The text of one sequence as it grows: tokens -> bytes -> whole characters -> up to a stop string.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "text/byte_table.h"
#include "text/stop_matcher.h"
#include "text/utf8_stream.h"

namespace fastllm {

class OutputText {
 public:
  struct Piece {
    std::string text;     // new text that is certain, valid UTF-8
    bool stopped = false;
    int stop_index = -1;  // which stop string
  };

  OutputText(std::shared_ptr<const ByteTable> table, std::vector<std::string> stop, bool include_stop,
             bool skip_special);

  Piece push(int32_t token);
  // The sequence ended without a stop string: what was held back comes out.
  Piece finish();

 private:
  std::shared_ptr<const ByteTable> table_;
  Utf8Stream characters_;
  StopMatcher matcher_;
  bool skips_special_;
};

}  // namespace fastllm
