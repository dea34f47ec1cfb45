// What the host entries of this folder share: the shape of a step as far as the host knows it, and the choice of an
// instance.
#pragma once

#include "cuda/attention/rows.h"

namespace fastllm::cuda {

// Bounds for grids. All follow from sizes that do not change while a graph is replayed.
struct AttentionShape {
  DType dtype = DType::kBF16;  // of the cache
  int64_t head_dim = 0;
  int64_t max_rows = 0;           // packed rows of a kv head in the whole step: T * g
  int64_t max_units = 0;          // (sequence, kv head, unit)
  int64_t max_decode_rows = 0;    // of a sequence and kv head that decode takes
  int64_t max_decode_tokens = 0;  // in the whole step
  int64_t typical_rows = 0;       // of a sequence and kv head that decode takes: chooses between equal results
};

void attention_decode(fl::Stream& stream, const AttentionParams& p, const AttentionShape& shape);
void attention_merge(fl::Stream& stream, const AttentionParams& p, const AttentionShape& shape);
void attention_prefill(fl::Stream& stream, const AttentionParams& p, const AttentionShape& shape);

// Head sizes that have instances.
constexpr bool has_instance(int64_t head_dim) {
  return head_dim == 64 || head_dim == 80 || head_dim == 96 || head_dim == 128 || head_dim == 256;
}

template <class Format, int D>
struct Instance {};

// Calls f(Instance<Format, D>{}).
template <class F>
void with_instance(const AttentionShape& shape, F&& f) {
  const auto with_dim = [&]<class Format>(Format) {
    switch (shape.head_dim) {
      case 64:
        return f(Instance<Format, 64>{});
      case 80:
        return f(Instance<Format, 80>{});
      case 96:
        return f(Instance<Format, 96>{});
      case 128:
        return f(Instance<Format, 128>{});
      case 256:
        return f(Instance<Format, 256>{});
      default:
        fail(ErrorKind::kInternal, "attention: no instance for head size ", shape.head_dim);
    }
  };
  switch (shape.dtype) {
    case DType::kBF16:
      return with_dim(KvHalf<fl::bf16>{});
    case DType::kF16:
      return with_dim(KvHalf<fl::f16>{});
    case DType::kI8:
      return with_dim(KvCodes<int8_t>{});
    case DType::kE4M3:
      return with_dim(KvCodes<fl::e4m3>{});
    case DType::kF32:
    case DType::kI32:
    case DType::kI64:
    case DType::kU8:
      break;
  }
  fail(ErrorKind::kInternal, "attention: no instance for a cache of ", name_of(shape.dtype));
}

// As many blocks as the chip holds at once with `smem` bytes each (at most `most` an SM), or as there is work for.
inline fl::Dim3 persistent_grid(const fl::DeviceProperties& device, int64_t smem, int64_t work, int64_t most) {
  constexpr int64_t kReserved = 1024;  // of shared memory, per block, by the system
  int64_t per_sm = (device.smem_per_block + kReserved) / (smem + kReserved);
  per_sm = per_sm < 1 ? 1 : per_sm > most ? most : per_sm;
  const int64_t blocks = per_sm * device.num_sms;
  return {narrow<uint32_t>(work < blocks ? work : blocks), 1, 1};
}

}  // namespace fastllm::cuda
