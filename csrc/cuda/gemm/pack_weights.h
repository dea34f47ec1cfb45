// From rows of a checkpoint to tiles (weight_tiles.h), on the device.
#pragma once

#include "cuda/fl/host.h"
#include "cuda/gemm/weight_tiles.h"

namespace fastllm::cuda {

// Rows [row_begin, row_begin + num_rows) of one expert of `to` (device memory, zero before its first rows). The source
// lies in device memory too: values [num_rows, K] of `dtype`, or codes [num_rows, K] with scales (float32) and zeros
// [num_rows, groups].
void pack_values(fl::Stream& stream, const PackedWeight& to, int64_t expert, int64_t row_begin, int64_t num_rows,
                 const void* values, DType dtype);
void pack_codes(fl::Stream& stream, const PackedWeight& to, int64_t expert, int64_t row_begin, int64_t num_rows,
                const uint8_t* codes, const float* scales, const uint8_t* zeros);

// out[i, k] = scale * W[ids[i], k] of expert 0: an embedding read back from its tiles.
void gather_rows(fl::Stream& stream, const WeightView& weight, const int32_t* ids, int64_t num_ids, float scale,
                 float* out, int64_t out_stride);

}  // namespace fastllm::cuda
