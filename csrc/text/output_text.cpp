#include "text/output_text.h"

#include <utility>

namespace fastllm {

OutputText::OutputText(std::shared_ptr<const ByteTable> table, std::vector<std::string> stop, bool include_stop,
                       bool skip_special)
    : table_(std::move(table)), matcher_(std::move(stop), include_stop), skips_special_(skip_special) {}

OutputText::Piece OutputText::push(int32_t token) {
  Piece piece;
  if (skips_special_ && table_->is_special(token)) return piece;
  std::string characters;
  characters_.push(table_->bytes(token), characters);
  piece.stop_index = matcher_.feed(characters, piece.text);
  piece.stopped = piece.stop_index >= 0;
  return piece;
}

OutputText::Piece OutputText::finish() {
  Piece piece;
  std::string characters;
  characters_.finish(characters);
  piece.stop_index = matcher_.feed(characters, piece.text);
  piece.stopped = piece.stop_index >= 0;
  if (!piece.stopped) matcher_.finish(piece.text);
  return piece;
}

}  // namespace fastllm
