#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings/bindings.h"
#include "text/output_text.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastllm {
namespace {

std::shared_ptr<ByteTable> make_byte_table(const std::vector<nb::bytes>& tokens, const std::vector<uint8_t>& is_special) {
  std::vector<std::string> bytes;
  bytes.reserve(tokens.size());
  for (const nb::bytes& token : tokens) bytes.emplace_back(token.c_str(), token.size());
  return std::make_shared<ByteTable>(bytes, is_special);
}

}  // namespace

void bind_text(nb::module_& m) {
  nb::class_<ByteTable>(m, "ByteTable", "Bytes of each token id; immutable.")
      .def(nb::new_(&make_byte_table), "tokens"_a, "is_special"_a)
      .def("__len__", &ByteTable::size)
      .def("bytes", [](const ByteTable& self, int32_t token) {
        const std::string_view bytes = self.bytes(token);
        return nb::bytes(bytes.data(), bytes.size());
      })
      .def("is_special", &ByteTable::is_special);
  nb::class_<OutputText>(m, "OutputText", "Text of a growing sequence: whole characters, up to a stop string.")
      .def(nb::init<std::shared_ptr<const ByteTable>, std::vector<std::string>, bool, bool>(), "byte_table"_a, "stop"_a,
           "include_stop"_a, "skip_special"_a)
      .def("push", [](OutputText& self, int32_t token) { return self.push(token).text; })
      .def("finish", [](OutputText& self) { return self.finish().text; });
  nb::class_<StopMatcher>(m, "StopMatcher", "Stop strings over text in pieces.")
      .def(nb::init<std::vector<std::string>, bool>(), "stops"_a, "keeps_stop"_a)
      .def("feed", [](StopMatcher& self, const std::string& text) {
        std::string out;
        const int stop = self.feed(text, out);
        return nb::make_tuple(nb::bytes(out.data(), out.size()), stop);
      })
      .def("finish", [](StopMatcher& self) {
        std::string out;
        self.finish(out);
        return nb::bytes(out.data(), out.size());
      });
  nb::class_<Utf8Stream>(m, "Utf8Stream", "Bytes in pieces to valid UTF-8.")
      .def(nb::init<>())
      .def("push", [](Utf8Stream& self, const nb::bytes& bytes) {
        std::string out;
        self.push({bytes.c_str(), bytes.size()}, out);
        return out;
      })
      .def("finish", [](Utf8Stream& self) {
        std::string out;
        self.finish(out);
        return out;
      });
}

}  // namespace fastllm
