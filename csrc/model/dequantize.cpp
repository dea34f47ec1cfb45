#include "model/dequantize.h"

#include <algorithm>
#include <cstring>
#include <ranges>

#include "core/checked.h"
#include "core/error.h"

namespace fastllm {
namespace {

float value_of(const QuantizedRows& from, int64_t row, float code, int64_t group) {
  const int64_t at = row * from.groups + group;
  const float zero = from.zeros != nullptr ? from.zeros[at] : 0.0f;
  const float offset = from.offsets != nullptr ? from.offsets[at] : 0.0f;
  return ((code - zero) * from.scales[at] - offset) * from.factor;
}

void dequantize_indexed(const QuantizedRows& from, float* out) {
  for (int64_t k = 0; k < from.cols; ++k) {
    if (from.group_of[k] < 0 || from.group_of[k] >= from.groups) {
      fail(ErrorKind::kCheckpoint, "group index of column ", k, " is ", from.group_of[k], ", expected [0, ",
           from.groups, ")");
    }
  }
  for (int64_t row = 0; row < from.rows; ++row) {
    const uint8_t* codes = from.codes + row * from.cols;
    for (int64_t k = 0; k < from.cols; ++k) {
      out[row * from.cols + k] = value_of(from, row, from.table[codes[k]], from.group_of[k]);
    }
  }
}

// Words of consecutive columns into rows of the output: blocks of words in the first cache, runs of bytes written.
void unpack_transposed(const PackedWords& from, uint8_t* out, int64_t out_rows, int64_t out_cols, uint32_t mask) {
  constexpr int64_t kBlock = 64;
  const int64_t per_word = 32 / from.bits;
  for (int64_t begin = 0; begin < from.rows; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, from.rows);
    for (int64_t j = 0; j < from.cols; ++j) {
      const int64_t count = std::min(per_word, out_rows - j * per_word);
      for (int64_t c = 0; c < count; ++c) {
        const int shift = from.positions[static_cast<std::size_t>(c)] * from.bits;
        uint8_t* to = out + (j * per_word + c) * out_cols;
        for (int64_t i = begin; i < end; ++i) {
          to[i] = static_cast<uint8_t>((from.data[i * from.row_stride + j * from.col_stride] >> shift) & mask);
        }
      }
    }
  }
}

// The codes of a word as consecutive bytes, lowest bits first.
uint64_t spread(uint32_t word, int bits) {
  if (bits == 8) return word;
  uint64_t x = word;
  x = (x | (x << 16)) & 0x0000ffff0000ffffu;
  x = (x | (x << 8)) & 0x00ff00ff00ff00ffu;
  return (x | (x << 4)) & 0x0f0f0f0f0f0f0f0fu;
}

// Words of consecutive columns (of the output), which is what a row of it is made of: whole words at once, in tiles of
// a line of words by a line of bytes. What fills up no word is left to the caller.
void unpack_in_order(const PackedWords& from, uint8_t* out, int64_t out_cols, int64_t num_words, bool is_transposed) {
  constexpr int64_t kTileWords = 8;
  constexpr int64_t kTileRows = 16;
  const int64_t num_rows = is_transposed ? from.cols : from.rows;
  const int64_t row_step = is_transposed ? from.col_stride : from.row_stride;
  const int64_t word_step = is_transposed ? from.row_stride : from.col_stride;
  const auto word_bytes = static_cast<std::size_t>(32 / from.bits);
  for (int64_t word_begin = 0; word_begin < num_words; word_begin += kTileWords) {
    const int64_t word_end = std::min(word_begin + kTileWords, num_words);
    for (int64_t row_begin = 0; row_begin < num_rows; row_begin += kTileRows) {
      const int64_t row_end = std::min(row_begin + kTileRows, num_rows);
      for (int64_t w = word_begin; w < word_end; ++w) {
        for (int64_t row = row_begin; row < row_end; ++row) {
          const uint64_t codes = spread(from.data[row * row_step + w * word_step], from.bits);
          std::memcpy(out + row * out_cols + w * (32 / from.bits), &codes, word_bytes);
        }
      }
    }
  }
}

}  // namespace

void dequantize(const QuantizedRows& from, float* out) {
  if (from.group_of != nullptr) return dequantize_indexed(from, out);
  FASTLLM_CHECK(from.group_size > 0 && from.groups >= ceil_div(from.cols, from.group_size), "groups do not cover rows");
  for (int64_t row = 0; row < from.rows; ++row) {
    const uint8_t* codes = from.codes + row * from.cols;
    float* to = out + row * from.cols;
    for (int64_t begin = 0, group = 0; begin < from.cols; begin += from.group_size, ++group) {
      const int64_t end = std::min(begin + from.group_size, from.cols);
      const int64_t at = row * from.groups + group;
      const float scale = from.scales[at];
      const float zero = from.zeros != nullptr ? from.zeros[at] : 0.0f;
      const float offset = from.offsets != nullptr ? from.offsets[at] : 0.0f;
      for (int64_t k = begin; k < end; ++k) {
        to[k] = ((from.table[codes[k]] - zero) * scale - offset) * from.factor;
      }
    }
  }
}

void unpack_codes(const PackedWords& from, bool transpose, uint8_t* out, int64_t out_rows, int64_t out_cols) {
  FASTLLM_CHECK(from.bits == 4 || from.bits == 8, "bits of a code");
  const int64_t per_word = 32 / from.bits;
  FASTLLM_CHECK(std::ssize(from.positions) == per_word, "positions of codes");
  const int64_t num_rows = transpose ? out_cols : out_rows;
  const int64_t num_cols = transpose ? out_rows : out_cols;
  FASTLLM_CHECK(ceil_div(num_rows, from.packs_rows ? per_word : 1) == from.rows, "rows of codes");
  FASTLLM_CHECK(ceil_div(num_cols, from.packs_rows ? 1 : per_word) == from.cols, "columns of codes");
  const uint32_t mask = (1u << from.bits) - 1;
  if (transpose && !from.packs_rows) return unpack_transposed(from, out, out_rows, out_cols, mask);
  const bool is_in_order = std::ranges::equal(from.positions, std::views::iota(0, static_cast<int>(per_word)));
  if (transpose == from.packs_rows && is_in_order && out_cols % per_word == 0) {
    return unpack_in_order(from, out, out_cols, out_cols / per_word, transpose);
  }
  const int64_t row_step = transpose ? 1 : out_cols;  // of the matrix, in bytes of the output
  const int64_t col_step = transpose ? out_cols : 1;
  for (int64_t i = 0; i < from.rows; ++i) {
    for (int64_t j = 0; j < from.cols; ++j) {
      const uint32_t word = from.data[i * from.row_stride + j * from.col_stride];
      const int64_t row = from.packs_rows ? i * per_word : i;
      const int64_t col = from.packs_rows ? j : j * per_word;
      const int64_t step = from.packs_rows ? row_step : col_step;
      const int64_t count = std::min(per_word, from.packs_rows ? num_rows - row : num_cols - col);
      uint8_t* to = out + row * row_step + col * col_step;
      for (int64_t c = 0; c < count; ++c) {
        to[c * step] = static_cast<uint8_t>((word >> (from.positions[static_cast<std::size_t>(c)] * from.bits)) & mask);
      }
    }
  }
}

}  // namespace fastllm
