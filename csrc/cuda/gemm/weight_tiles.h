// Where the elements of a packed weight lie in device memory.
//
// A matrix is cut into strips of 16 output rows and chunks of 64 columns; eight strips are a band. Chunks lie as
//   [N / 128 bands][K / 64 chunks][8 strips][words][32 lanes][16 bytes]
// so that one lane reads its part of a chunk, with 16-byte loads, in exactly the registers in which the tensor core
// wants it. A chunk has four micro-tiles of 16 x 16, the A operand of m16n8k16 with output rows on M. Lane (g = lane /
// 4, t = lane % 4) holds registers
//   a0: row g, columns 2t, 2t + 1    a1: row g + 8, same columns    a2: row g, columns 2t + 8, 2t + 9    a3: row g + 8
//
//   bf16, f16  four words, one per micro-tile: a0, a1, a2, a3                                      2 bytes per weight
//   int8, fp8  two words, two micro-tiles each: 8 bytes = a0 a1 a2 a3, two codes each              1
//   int4       one word, four micro-tiles: 32 bits = first codes of a0..a3 in nibbles 0-3,
//              second codes in nibbles 4-7, so that a mask of 0x000f000f takes one register out    1/2
//   f32        no tiles: [N][K]; for routers and exact runs                                        4
//
// Formats with codes have scales [bands][groups][8 strips][8 g][rows g, g + 8] behind the codes, so that a lane reads
// its two with one load, and zeros (bytes) in the same order behind them. N is padded to 128 and K to 64 with zero
// bytes: padded scales are 0, padded activations are 0. Experts follow each other.
#pragma once

#include <cstdint>

#include "ops/weights.h"

namespace fastllm::cuda {

constexpr int kBandRows = 128;
constexpr int kStripRows = 16;
constexpr int kStripsPerBand = kBandRows / kStripRows;
constexpr int kChunkCols = 64;

// Bytes and counts of a packed weight; `desc` is copied where kernels need it.
struct TileLayout {
  explicit TileLayout(const WeightDesc& desc);
  int64_t num_bands;
  int64_t num_chunks;
  int64_t chunk_bytes;  // of one strip
  int64_t num_groups;
  int64_t code_bytes;
  int64_t scale_bytes;  // 0 without scales
  int64_t zero_bytes;
  int64_t expert_bytes;
};

// What kernels get.
struct WeightView {
  const unsigned char* data = nullptr;  // expert 0
  int64_t expert_bytes = 0;
  int64_t scale_offset = 0;  // from the start of an expert
  int64_t zero_offset = 0;   // 0: no zeros
  int32_t n = 0;
  int32_t k = 0;
  int32_t num_chunks = 0;
  int32_t num_groups = 0;
  int32_t group_shift = 0;  // columns of a group are 1 << group_shift; 30: the whole row
  WeightFormat format = WeightFormat::kBF16;
  DType scale_dtype = DType::kF16;
  ActMode act = ActMode::kBF16;  // of formats with codes

  [[nodiscard]] int64_t act_group() const { return group_shift > 7 ? 64 : int64_t{1} << group_shift; }
};
WeightView view_of(const PackedWeight& weight);

#if defined(__CUDACC__)
#define FASTLLM_HOST_DEVICE __host__ __device__
#else
#define FASTLLM_HOST_DEVICE
#endif

// Words of 16 bytes that a lane holds of a chunk.
FASTLLM_HOST_DEVICE constexpr int words_per_chunk(WeightFormat format) {
  if (format == WeightFormat::kInt4) return 1;
  return format == WeightFormat::kInt8 || format == WeightFormat::kE4M3 ? 2 : 4;
}

// Byte offset, from the start of the expert, of the 32-bit unit with (row, col); for int4 also the shift of its nibble,
// for int8 and fp8 that of its byte, for 16 bits that of its half.
struct TileAddress {
  int64_t unit;
  int32_t shift;
};
FASTLLM_HOST_DEVICE constexpr TileAddress tile_address(WeightFormat format, int64_t num_chunks, int64_t row,
                                                       int64_t col) {
  const int64_t strip = row % kBandRows / kStripRows;
  const int64_t chunk = (row / kBandRows * num_chunks + col / kChunkCols) * kStripsPerBand + strip;
  const int step = static_cast<int>(col % kChunkCols / 16);
  const int c = static_cast<int>(col % 16);
  const int lane = static_cast<int>(row % 8) * 4 + c % 8 / 2;
  const int reg = static_cast<int>(row % kStripRows / 8) + 2 * (c / 8);
  const int odd = c % 2;
  const int words = words_per_chunk(format);
  const int64_t base = chunk * words * 512 + lane * 16;
  switch (format) {
    case WeightFormat::kInt4:
      return {base + step * 4, 4 * reg + 16 * odd};
    case WeightFormat::kInt8:
    case WeightFormat::kE4M3:
      return {base + step / 2 * 512 + step % 2 * 8 + reg / 2 * 4, 16 * (reg % 2) + 8 * odd};
    case WeightFormat::kF32:
    case WeightFormat::kBF16:
    case WeightFormat::kF16:
      break;
  }
  return {base + step * 512 + reg * 4, 16 * odd};
}

// Index of (row, group) in scales and zeros.
FASTLLM_HOST_DEVICE constexpr int64_t scale_index(int64_t num_groups, int64_t row, int64_t group) {
  const int64_t r = row % kStripRows;
  return (row / kBandRows * num_groups + group) * kBandRows + row % kBandRows / kStripRows * kStripRows + r % 8 * 2 +
         r / 8;
}

}  // namespace fastllm::cuda
