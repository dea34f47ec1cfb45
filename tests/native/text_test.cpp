// Bytes in any pieces -> text: against decoders that see everything at once and are written another way.
#include <algorithm>
#include <array>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "harness.h"
#include "text/output_text.h"
#include "text/stop_matcher.h"
#include "text/utf8_stream.h"

namespace fastllm::test {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";

// Well-formed byte sequences, as Unicode's table 3-7 lists them.
struct Form {
  int length;
  std::array<std::pair<int, int>, 4> ranges;
};
constexpr std::pair<int, int> kTail = {0x80, 0xBF};
const std::array<Form, 9> kForms = {{{1, {{{0x00, 0x7F}}}},
                                     {2, {{{0xC2, 0xDF}, kTail}}},
                                     {3, {{{0xE0, 0xE0}, {0xA0, 0xBF}, kTail}}},
                                     {3, {{{0xE1, 0xEC}, kTail, kTail}}},
                                     {3, {{{0xED, 0xED}, {0x80, 0x9F}, kTail}}},
                                     {3, {{{0xEE, 0xEF}, kTail, kTail}}},
                                     {4, {{{0xF0, 0xF0}, {0x90, 0xBF}, kTail, kTail}}},
                                     {4, {{{0xF1, 0xF3}, kTail, kTail, kTail}}},
                                     {4, {{{0xF4, 0xF4}, {0x80, 0x8F}, kTail, kTail}}}}};

// Length of the longest beginning of text that is a beginning of a well-formed sequence; complete if it is all of one.
std::pair<std::size_t, bool> longest_match(std::string_view text) {
  std::pair<std::size_t, bool> best{0, false};
  for (const Form& form : kForms) {
    std::size_t i = 0;
    while (i < static_cast<std::size_t>(form.length) && i < text.size()) {
      const int byte = static_cast<uint8_t>(text[i]);
      if (byte < form.ranges[i].first || byte > form.ranges[i].second) break;
      ++i;
    }
    if (i > best.first) best = {i, i == static_cast<std::size_t>(form.length)};
  }
  return best;
}

std::string decode(std::string_view bytes) {
  std::string out;
  while (!bytes.empty()) {
    const auto [length, is_complete] = longest_match(bytes);
    out += is_complete ? bytes.substr(0, length) : kReplacement;
    bytes.remove_prefix(std::max<std::size_t>(length, 1));
  }
  return out;
}

bool is_valid_utf8(std::string_view text) {
  while (!text.empty()) {
    const auto [length, is_complete] = longest_match(text);
    if (!is_complete) return false;
    text.remove_prefix(length);
  }
  return true;
}

// Bytes that break decoders: characters of every length, cut, overlong, surrogates, above U+10FFFF, and noise.
std::string random_bytes(Random& random, int64_t max_pieces) {
  static const std::vector<std::string> pieces = {"a",
                                                  "b",
                                                  "ab",
                                                  " ",
                                                  "\xC3\xA9",
                                                  "\xE2\x82\xAC",
                                                  "\xF0\x9F\x98\x80",
                                                  "\xE2\x82",
                                                  "\xF0\x9F",
                                                  "\xC0\xAF",
                                                  "\xED\xA0",
                                                  "\x80\xBF",
                                                  "\xF4\x90\x80\x80",
                                                  "\xF5",
                                                  "\xEF\xBF\xBD",
                                                  "\xE0\x9F"};
  std::string text;
  for (int64_t i = random.pick(0, max_pieces); i > 0; --i) {
    if (random.chance(15)) {
      text += static_cast<char>(random.pick(0, 255));
    } else {
      text += pieces[static_cast<std::size_t>(random.pick(0, static_cast<int64_t>(pieces.size()) - 1))];
    }
  }
  return text;
}

std::vector<std::string> cut(const std::string& text, Random& random) {
  std::vector<std::string> pieces;
  const int64_t longest = random.pick(1, 6);
  for (std::size_t at = 0; at < text.size();) {
    const auto length = static_cast<std::size_t>(random.pick(0, longest));
    pieces.push_back(text.substr(at, length));
    at += pieces.back().size();
  }
  return pieces;
}

NATIVE_TEST(utf8_does_not_depend_on_the_pieces) {
  Random random(options().seed);
  for (int64_t i = 0; i < 4 * options().schedules; ++i) {
    const std::string bytes = random_bytes(random, 12);
    Utf8Stream stream;
    std::string shown;
    std::size_t num_read = 0;
    for (const std::string& piece : cut(bytes, random)) {
      std::string news;
      stream.push(piece, news);
      require(is_valid_utf8(news), "half a character was shown");
      shown += news;
      num_read += piece.size();
      // What the bytes so far make certain: all of their decoding but an incomplete character at the end.
      const std::string sure = decode(bytes.substr(0, num_read));
      require(sure.starts_with(shown) && sure.size() - shown.size() <= kReplacement.size(),
              "more or less than certain");
    }
    stream.finish(shown);
    require(shown == decode(bytes), "other text than the bytes have in one piece");
  }
}

NATIVE_TEST(every_two_bytes_and_every_lead_decode_like_the_table) {
  for (int first = 0; first < 256; ++first) {
    for (int second = 0; second < 256; ++second) {
      for (const char* rest : {"", "\x80", "\x80\x80", "\xBF\xBF", "a"}) {
        const std::string bytes = std::string{static_cast<char>(first), static_cast<char>(second)} + rest;
        Utf8Stream stream;
        std::string shown;
        for (const char byte : bytes) stream.push({&byte, 1}, shown);
        stream.finish(shown);
        require(shown == decode(bytes), "lead bytes " + std::to_string(first) + ", " + std::to_string(second));
      }
    }
  }
}

struct Stopped {
  std::string text;
  int stop = -1;
};
// The match that ends first, of those the longest, of those the first given.
Stopped stop_at_once(const std::string& text, const std::vector<std::string>& stops, bool keeps_stop) {
  for (std::size_t end = 1; end <= text.size(); ++end) {
    int found = -1;
    for (std::size_t i = 0; i < stops.size(); ++i) {
      if (stops[i].empty() || !std::string_view(text).substr(0, end).ends_with(stops[i])) continue;
      if (found < 0 || stops[i].size() > stops[static_cast<std::size_t>(found)].size()) found = static_cast<int>(i);
    }
    if (found < 0) continue;
    const std::size_t length = stops[static_cast<std::size_t>(found)].size();
    return {text.substr(0, keeps_stop ? end : end - length), found};
  }
  return {text, -1};
}

std::vector<std::string> random_stops(Random& random, const std::vector<std::string>& letters, int64_t max_stops) {
  std::vector<std::string> stops;
  for (int64_t i = random.pick(0, max_stops); i > 0; --i) {
    std::string stop;
    for (int64_t j = random.pick(0, 5); j > 0; --j) {
      stop += letters[static_cast<std::size_t>(random.pick(0, static_cast<int64_t>(letters.size()) - 1))];
    }
    stops.push_back(stop);
  }
  return stops;
}

// A small alphabet, so that stop strings overlap themselves and each other.
NATIVE_TEST(stop_strings_do_not_depend_on_the_pieces) {
  Random random(options().seed);
  const std::vector<std::string> letters = {"a", "b", "\xC3\xA9"};
  for (int64_t i = 0; i < 4 * options().schedules; ++i) {
    std::string text;
    for (int64_t j = random.pick(0, 24); j > 0; --j) text += letters[static_cast<std::size_t>(random.pick(0, 2))];
    const std::vector<std::string> stops = random_stops(random, letters, 3);
    const bool keeps_stop = random.chance(50);
    const Stopped want = stop_at_once(text, stops, keeps_stop);
    StopMatcher matcher(stops, keeps_stop);
    std::string shown;
    int stop = -1;
    for (const std::string& piece : cut(text, random)) {
      const bool was_over = stop >= 0;
      const std::size_t before = shown.size();
      stop = matcher.feed(piece, shown);
      require(!was_over || shown.size() == before, "text after the stop");
      require(want.text.starts_with(shown), "a part of the stop string, or what follows it, was shown");
    }
    if (stop < 0) matcher.finish(shown);
    require_equal(stop, want.stop, "which stop string of text \"" + text + "\"");
    require(shown == want.text, "\"" + shown + "\" instead of \"" + want.text + "\"");
  }
}

// Tokens are any bytes: half characters, noise, specials. The text is that of all tokens at once, cut at the stop.
NATIVE_TEST(output_text_is_the_text_of_all_tokens) {
  Random random(options().seed);
  for (int64_t i = 0; i < options().schedules; ++i) {
    const int64_t vocab_size = random.pick(1, 12);
    std::vector<std::string> names;
    std::vector<uint8_t> is_special;
    for (int64_t id = 0; id < vocab_size; ++id) {
      names.push_back(random_bytes(random, 2));
      is_special.push_back(random.chance(20) ? 1 : 0);
    }
    const auto table = std::make_shared<ByteTable>(names, is_special);
    const std::vector<std::string> stops =
        random_stops(random, {"a", "b", " ", "\xC3\xA9", std::string(kReplacement)}, 3);
    const bool keeps_stop = random.chance(50);
    const bool skips_special = random.chance(50);
    OutputText output(table, stops, keeps_stop, skips_special);
    std::string bytes;
    std::string shown;
    bool stopped = false;
    for (int64_t j = random.pick(0, 20); j > 0; --j) {
      const auto token = static_cast<int32_t>(random.pick(-1, vocab_size));  // outside the table: no text
      const OutputText::Piece piece = output.push(token);
      require(is_valid_utf8(piece.text), "half a character was shown");
      require(!stopped || (piece.stopped && piece.text.empty()), "text after the stop");
      stopped = piece.stopped;
      shown += piece.text;
      const bool has_text =
          token >= 0 && token < vocab_size && !(skips_special && is_special[static_cast<std::size_t>(token)] != 0);
      if (has_text) bytes += names[static_cast<std::size_t>(token)];
    }
    if (!stopped) {
      const OutputText::Piece piece = output.finish();
      stopped = piece.stopped;
      shown += piece.text;
    }
    const Stopped want = stop_at_once(decode(bytes), stops, keeps_stop);
    require_equal(stopped, want.stop >= 0, "stopped");
    require(shown == want.text, "\"" + shown + "\" instead of \"" + want.text + "\"");
  }
}

NATIVE_TEST(a_long_stop_string_costs_linear_time) {
  // A beginning that matches again and again is where a naive matcher becomes quadratic.
  const std::string stop = std::string(1023, 'a') + "b";
  StopMatcher matcher(std::vector<std::string>(16, stop), false);
  std::string shown;
  const std::string text(200000, 'a');
  require_equal(matcher.feed(text, shown), -1, "stop");
  require_equal(shown.size(), text.size() - 1023, "bytes shown");
  require_equal(matcher.feed("b", shown), 0, "stop");
  require_equal(shown.size(), text.size() - 1023, "bytes shown at the stop");
}

NATIVE_TEST(byte_table_refuses_lists_that_differ) {
  require_error(ErrorKind::kInvalidRequest, [] { ByteTable table({"a"}, {}); }, "two lengths");
  const ByteTable table({"a", ""}, {0, 1});
  require(table.bytes(-1).empty() && table.bytes(2).empty() && table.bytes(1).empty() && table.bytes(0) == "a",
          "bytes");
  require(!table.is_special(-1) && !table.is_special(2) && table.is_special(1), "special");
}

}  // namespace
}  // namespace fastllm::test
