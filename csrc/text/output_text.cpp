#include "text/output_text.h"

#include <utility>

namespace fastllm {

OutputText::OutputText(std::shared_ptr<const ByteTable> table, std::vector<std::string> stop, bool include_stop,
                       bool skip_special, bool strip_first_space)
    : detokenizer_(std::move(table), skip_special, strip_first_space), matcher_(std::move(stop), include_stop) {}

OutputText::Piece OutputText::push(int32_t token) {
  std::string characters;
  detokenizer_.push(token, characters);
  return feed(characters);
}

OutputText::Piece OutputText::finish() {
  std::string characters;
  detokenizer_.flush(characters);
  // The U+FFFD of an incomplete character can complete a stop string too.
  Piece piece = feed(characters);
  if (!piece.stopped) matcher_.finish(piece.text);
  return piece;
}

OutputText::Piece OutputText::feed(std::string_view characters) {
  Piece piece;
  piece.stop_index = matcher_.feed(characters, piece.text);
  piece.stopped = piece.stop_index >= 0;
  return piece;
}

}  // namespace fastllm
