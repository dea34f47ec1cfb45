// The pages of K and V, and slots: 16 tokens of K or V of one head in shared memory, filled by cp_async.
//
// 16 tokens: the rows of an MMA, and the smallest page, so that a slot never needs two pages. Tokens beyond the end of
// the sequence become zeros: their bytes in the page may be anything, NaN included, and 0 * NaN would spoil a sum.
#pragma once

#include "cuda/attention/kv_format.h"
#include "ops/ops.h"

namespace fastllm::cuda {

constexpr int kSlotTokens = 16;

// Offsets in bytes within a page: K [kv head][token][pitch], V, and for codes the scales (bf16) of K [kv
// head][token][group of kKvScaleDims dims] and of V [kv head][token].
struct PagesView {
  const std::byte* data;
  int64_t page_bytes;
  int64_t v_offset;
  int64_t k_scales_offset;
  int64_t v_scales_offset;
};

template <class Format, int D>
struct Slot {
  using Element = typename Format::Element;
  static_assert(D % 16 == 0);
  static constexpr int kRowBytes = D * static_cast<int>(sizeof(Element));
  static constexpr int kRowChunks = kRowBytes / 16;
  // An odd number of 16-byte chunks: eight rows then lie in eight different bank groups, as ldmatrix wants them.
  static constexpr int kPitch = 16 * (kRowChunks | 1);
  static constexpr int kScaleGroups = Format::kHasScales ? (D + 31) / 32 : 0;
  // A slot of K carries the scales of the same tokens of V too: the weights are multiplied by them before V is needed.
  static constexpr int kKScales = kSlotTokens * kPitch;
  static constexpr int kVScales = kKScales + kSlotTokens * kScaleGroups * 2;
  static constexpr int kBytes = kVScales + (Format::kHasScales ? kSlotTokens * 2 : 0);
  static_assert(kBytes % 16 == 0);

  // Starts the copies of the tokens from `first` of the page on; `num_valid` of them exist (the page is not looked at
  // where none does). Shared by `num_threads` threads.
  __device__ static void fill(uint32_t slot, const PagesView& pages, int64_t page, int64_t page_size, int first,
                              int kv_head, bool is_v, int num_valid, int thread, int num_threads) {
    const std::byte* base = pages.data + (num_valid > 0 ? page * pages.page_bytes : 0);
    const int64_t token = kv_head * page_size + first;
    const std::byte* rows = base + (is_v ? pages.v_offset : 0) + token * kRowBytes;
#pragma unroll
    for (int begin = 0; begin < kSlotTokens * kRowChunks; begin += num_threads) {
      const int chunk = begin + thread;
      if (chunk >= kSlotTokens * kRowChunks) break;
      const int row = chunk / kRowChunks;
      const int column = 16 * (chunk % kRowChunks);
      fl::cp_async<16>(slot + static_cast<uint32_t>(row * kPitch + column), rows + row * kRowBytes + column,
                       row < num_valid ? 16 : 0);
    }
    if constexpr (Format::kHasScales) {
      if (is_v) return;
      fill_scales<kScaleGroups>(slot + kKScales, base + pages.k_scales_offset, token, num_valid, thread);
      fill_scales<1>(slot + kVScales, base + pages.v_scales_offset, token, num_valid, thread);
    }
  }

 private:
  template <int PerToken>
  __device__ static void fill_scales(uint32_t to, const std::byte* scales, int64_t token, int num_valid, int thread) {
    constexpr int kChunks = kSlotTokens * PerToken * 2 / 16;
    static_assert(kChunks <= 32);
    if (thread >= kChunks) return;
    int bytes = num_valid * PerToken * 2 - 16 * thread;
    bytes = bytes < 0 ? 0 : bytes > 16 ? 16 : bytes;
    fl::cp_async<16>(to + static_cast<uint32_t>(16 * thread), scales + token * PerToken * 2 + 16 * thread, bytes);
  }
};

}  // namespace fastllm::cuda
