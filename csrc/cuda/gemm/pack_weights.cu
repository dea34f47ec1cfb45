// Packing: one thread per pair of columns of a row. Rows g and g + 8 of a strip share the 32-bit units of int4, hence
// the atomic; the other formats store whole bytes of their own.
// Reading back: one thread per column, arithmetic in float: (code - zero) * scale, one rounding.
#include "core/checked.h"
#include "cuda/fl/gpu.h"
#include "cuda/gemm/pack_weights.h"

namespace fastllm::cuda {
namespace {

constexpr int kThreads = 256;

struct PackArgs {
  unsigned char* expert;
  WeightView w;
  int64_t row_begin;
  int64_t num_rows;
  const void* values;
  const float* scales;
  const uint8_t* zeros;
};

template <class To, class From>
__device__ To convert(From x) {
  if constexpr (std::is_same_v<To, From>) {
    return x;
  } else {
    return fl::from_float<To>(fl::to_float(x));
  }
}

// registers: 48
template <class To, class From>
__global__ void __launch_bounds__(kThreads) pack_values_kernel(PackArgs a) {
  const int64_t pairs = (static_cast<int64_t>(a.w.k) + 1) / 2;
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (unit >= a.num_rows * pairs) return;
  const int64_t row = unit / pairs;
  const int64_t col = unit % pairs * 2;
  const From* from = static_cast<const From*>(a.values) + row * a.w.k;
  for (int64_t k = col; k < col + 2 && k < a.w.k; ++k) {
    if constexpr (std::is_same_v<To, float>) {
      reinterpret_cast<float*>(a.expert)[(a.row_begin + row) * a.w.k + k] = convert<float>(from[k]);
    } else {
      const TileAddress at = tile_address(a.w.format, a.w.num_chunks, a.row_begin + row, k);
      *reinterpret_cast<To*>(a.expert + at.unit + at.shift / 8) = convert<To>(from[k]);
    }
  }
}

// registers: 48
__global__ void __launch_bounds__(kThreads) pack_codes_kernel(PackArgs a) {
  const int64_t pairs = (static_cast<int64_t>(a.w.k) + 1) / 2;
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (unit >= a.num_rows * pairs) return;
  const int64_t row = unit / pairs;
  const int64_t col = unit % pairs * 2;
  const uint8_t* codes = static_cast<const uint8_t*>(a.values) + row * a.w.k;
  for (int64_t k = col; k < col + 2 && k < a.w.k; ++k) {
    const TileAddress at = tile_address(a.w.format, a.w.num_chunks, a.row_begin + row, k);
    if (a.w.format == WeightFormat::kInt4) {
      fl::atomic_or(reinterpret_cast<uint32_t*>(a.expert + at.unit), static_cast<uint32_t>(codes[k]) << at.shift);
    } else {
      a.expert[at.unit + at.shift / 8] = codes[k];
    }
  }
}

// One thread per scale.
// registers: 48
__global__ void __launch_bounds__(kThreads) pack_scales_kernel(PackArgs a) {
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (unit >= a.num_rows * a.w.num_groups) return;
  const int64_t index = scale_index(a.w.num_groups, a.row_begin + unit / a.w.num_groups, unit % a.w.num_groups);
  unsigned char* scales = a.expert + a.w.scale_offset;
  if (a.w.scale_dtype == DType::kF32) {
    reinterpret_cast<float*>(scales)[index] = a.scales[unit];
  } else {
    reinterpret_cast<uint16_t*>(scales)[index] =
        a.w.scale_dtype == DType::kF16 ? fl::to_f16(a.scales[unit]).bits : fl::to_bf16(a.scales[unit]).bits;
  }
  if (a.w.zero_offset != 0) a.expert[a.w.zero_offset + index] = a.zeros[unit];
}

struct GatherArgs {
  WeightView w;
  const int32_t* ids;
  int64_t num_ids;
  float scale;
  float* out;
  int64_t out_stride;
};

__device__ float element(const WeightView& w, int64_t row, int64_t col) {
  if (w.format == WeightFormat::kF32) return reinterpret_cast<const float*>(w.data)[row * w.k + col];
  const TileAddress at = tile_address(w.format, w.num_chunks, row, col);
  if (w.format == WeightFormat::kBF16) {
    return fl::to_float(*reinterpret_cast<const fl::bf16*>(w.data + at.unit + at.shift / 8));
  }
  if (w.format == WeightFormat::kF16) {
    return fl::to_float(*reinterpret_cast<const fl::f16*>(w.data + at.unit + at.shift / 8));
  }
  const int64_t index = scale_index(w.num_groups, row, col >> w.group_shift);
  const unsigned char* scales = w.data + w.scale_offset;
  if (w.format == WeightFormat::kE4M3) {
    const fl::e4m3 code{w.data[at.unit + at.shift / 8]};
    return fl::to_float(code) * reinterpret_cast<const float*>(scales)[index];
  }
  const bool is_int4 = w.format == WeightFormat::kInt4;
  const int code = is_int4 ? static_cast<int>(*reinterpret_cast<const uint32_t*>(w.data + at.unit) >> at.shift & 15u)
                           : static_cast<int>(w.data[at.unit + at.shift / 8]);
  const int zero = w.zero_offset != 0 ? w.data[w.zero_offset + index] : (is_int4 ? 8 : 128);
  float scale = 0.0f;
  if (w.scale_dtype == DType::kF32) {
    scale = reinterpret_cast<const float*>(scales)[index];
  } else if (w.scale_dtype == DType::kF16) {
    scale = fl::to_float(reinterpret_cast<const fl::f16*>(scales)[index]);
  } else {
    scale = fl::to_float(reinterpret_cast<const fl::bf16*>(scales)[index]);
  }
  return static_cast<float>(code - zero) * scale;
}

// registers: 48
__global__ void __launch_bounds__(kThreads) gather_rows_kernel(GatherArgs a) {
  const int64_t unit = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (unit >= a.num_ids * a.w.k) return;
  const int64_t i = unit / a.w.k;
  const int64_t col = unit % a.w.k;
  a.out[i * a.out_stride + col] = element(a.w, a.ids[i], col) * a.scale;
}

fl::LaunchConfig config(const char* name, int64_t units) {
  const int64_t blocks = ceil_div(units, kThreads);
  FASTLLM_CHECK(blocks <= INT32_MAX, name, ": ", units, " elements are more than a grid holds");
  return {name, {static_cast<uint32_t>(blocks)}, kThreads, 0};
}

PackArgs pack_args(const PackedWeight& to, int64_t expert, int64_t row_begin, int64_t num_rows) {
  PackArgs args{};
  args.w = view_of(to);
  args.expert = reinterpret_cast<unsigned char*>(to.data) + expert * args.w.expert_bytes;
  args.row_begin = row_begin;
  args.num_rows = num_rows;
  return args;
}

template <class To>
void launch_pack(fl::Stream& stream, const PackArgs& args, DType dtype) {
  const fl::LaunchConfig shape = config("pack_values", args.num_rows * ceil_div(args.w.k, 2));
  switch (dtype) {
    case DType::kF32:
      return fl::launch(stream, shape, pack_values_kernel<To, float>, args);
    case DType::kBF16:
      return fl::launch(stream, shape, pack_values_kernel<To, fl::bf16>, args);
    case DType::kF16:
      return fl::launch(stream, shape, pack_values_kernel<To, fl::f16>, args);
    default:
      fail(ErrorKind::kInternal, "pack_values: ", name_of(dtype), " is no type of weights");
  }
}

}  // namespace

void pack_values(fl::Stream& stream, const PackedWeight& to, int64_t expert, int64_t row_begin, int64_t num_rows,
                 const void* values, DType dtype) {
  PackArgs args = pack_args(to, expert, row_begin, num_rows);
  args.values = values;
  switch (to.desc.format) {
    case WeightFormat::kF32:
      return launch_pack<float>(stream, args, dtype);
    case WeightFormat::kBF16:
      return launch_pack<fl::bf16>(stream, args, dtype);
    case WeightFormat::kF16:
      return launch_pack<fl::f16>(stream, args, dtype);
    case WeightFormat::kInt8:
    case WeightFormat::kInt4:
    case WeightFormat::kE4M3:
      fail(ErrorKind::kInternal, "pack_values: ", name_of(to.desc.format), " weights are made of codes");
  }
}

void pack_codes(fl::Stream& stream, const PackedWeight& to, int64_t expert, int64_t row_begin, int64_t num_rows,
                const uint8_t* codes, const float* scales, const uint8_t* zeros) {
  PackArgs args = pack_args(to, expert, row_begin, num_rows);
  args.values = codes;
  args.scales = scales;
  args.zeros = zeros;
  fl::launch(stream, config("pack_codes", num_rows * ceil_div(args.w.k, 2)), pack_codes_kernel, args);
  fl::launch(stream, config("pack_scales", num_rows * args.w.num_groups), pack_scales_kernel, args);
}

void gather_rows(fl::Stream& stream, const WeightView& weight, const int32_t* ids, int64_t num_ids, float scale,
                 float* out, int64_t out_stride) {
  const GatherArgs args{weight, ids, num_ids, scale, out, out_stride};
  fl::launch(stream, config("gather_rows", num_ids * weight.k), gather_rows_kernel, args);
}

}  // namespace fastllm::cuda
