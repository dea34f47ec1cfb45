// Tokens to text. The engine uses these classes natively; Python needs the table, `decode`, and all of them in tests.
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "core/error.h"
#include "text/output_text.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastllm {
namespace {

std::shared_ptr<ByteTable> make_byte_table(const std::vector<nb::bytes>& tokens,
                                           const std::vector<uint8_t>& is_special) {
  std::vector<std::string> bytes;
  bytes.reserve(tokens.size());
  for (const nb::bytes& token : tokens) bytes.emplace_back(token.c_str(), token.size());
  return std::make_shared<ByteTable>(bytes, is_special);
}

void require(const std::shared_ptr<ByteTable>& table) {
  if (table == nullptr) fail(ErrorKind::kInvalidRequest, "byte_table is None; it is needed to turn ids into text");
}

std::string decode(const std::shared_ptr<ByteTable>& table, const std::vector<int32_t>& ids, bool skip_special,
                   bool strip_first_space) {
  Detokenizer detokenizer(table, skip_special, strip_first_space);
  std::string text;
  for (const int32_t id : ids) detokenizer.push(id, text);
  detokenizer.flush(text);
  return text;
}

}  // namespace

void bind_text(nb::module_& m) {
  nb::class_<ByteTable>(m, "ByteTable", "Bytes of each token id and whether it is special; immutable.")
      .def(nb::new_(&make_byte_table), "tokens"_a, "is_special"_a)
      .def("__len__", &ByteTable::size)
      .def(
          "bytes",
          [](const ByteTable& self, int32_t token) {
            const std::string_view bytes = self.bytes(token);
            return nb::bytes(bytes.data(), bytes.size());
          },
          "token"_a, "Bytes of a token; empty for an id outside the table.")
      .def("is_special", &ByteTable::is_special, "token"_a)
      .def("decode", &decode, "ids"_a, nb::kw_only(), "skip_special"_a, "strip_first_space"_a = false,
           nb::call_guard<GilRelease>(), "Text of a whole sequence; equals its streamed pieces, joined.");

  nb::class_<Detokenizer>(m, "Detokenizer", "Ids of one sequence to valid UTF-8, piece by piece.")
      .def(
          "__init__",
          [](Detokenizer* self, const std::shared_ptr<ByteTable>& table, bool skip_special, bool strip_first_space) {
            require(table);
            new (self) Detokenizer(table, skip_special, strip_first_space);
          },
          "byte_table"_a.none(), nb::kw_only(), "skip_special"_a = true, "strip_first_space"_a = false)
      .def(
          "push",
          [](Detokenizer& self, int32_t token) {
            std::string out;
            self.push(token, out);
            return out;
          },
          "token"_a)
      .def("flush", [](Detokenizer& self) {
        std::string out;
        self.flush(out);
        return out;
      });

  nb::class_<StopMatcher>(m, "StopMatcher", "Stop strings over text in pieces; feed() gives (safe text, index or -1).")
      .def(nb::init<std::vector<std::string>, bool>(), "stops"_a, nb::kw_only(), "keeps_stop"_a)
      .def(
          "feed",
          [](StopMatcher& self, const nb::bytes& text) {
            std::string out;
            const int stop = self.feed({text.c_str(), text.size()}, out);
            return nb::make_tuple(nb::bytes(out.data(), out.size()), stop);
          },
          "text"_a)
      .def("finish", [](StopMatcher& self) {
        std::string out;
        self.finish(out);
        return nb::bytes(out.data(), out.size());
      });

  nb::class_<OutputText::Piece>(m, "TextPiece")
      .def_ro("text", &OutputText::Piece::text)
      .def_ro("stopped", &OutputText::Piece::stopped)
      .def_ro("stop_index", &OutputText::Piece::stop_index);
  nb::class_<OutputText>(m, "OutputText", "Text of a growing sequence: whole characters, up to a stop string.")
      .def(
          "__init__",
          [](OutputText* self, const std::shared_ptr<ByteTable>& table, std::vector<std::string> stop,
             bool include_stop, bool skip_special, bool strip_first_space) {
            require(table);
            new (self) OutputText(table, std::move(stop), include_stop, skip_special, strip_first_space);
          },
          "byte_table"_a.none(), "stop"_a, nb::kw_only(), "include_stop"_a, "skip_special"_a,
          "strip_first_space"_a = false)
      .def("push", &OutputText::push, "token"_a)
      .def("finish", &OutputText::finish);
}

}  // namespace fastllm
