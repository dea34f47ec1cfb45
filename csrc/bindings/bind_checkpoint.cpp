// Arithmetic of quantized checkpoints over numpy arrays: checks of shapes, then model/dequantize without the GIL.
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <memory>
#include <tuple>
#include <utility>

#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "core/dtype.h"
#include "core/error.h"
#include "model/dequantize.h"
#include "ops/quantize_rows.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastllm {
namespace {

using Codes = nb::ndarray<const uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Floats = nb::ndarray<const float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Table = nb::ndarray<const float, nb::shape<256>, nb::c_contig, nb::device::cpu>;
using Indices = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;
using Words = nb::ndarray<const uint32_t, nb::ndim<2>, nb::device::cpu>;
using FloatsOut = nb::ndarray<float, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using CodesOut = nb::ndarray<uint8_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;

int64_t size_of(const auto& array, std::size_t dim) { return static_cast<int64_t>(array.shape(dim)); }

void check_shape(bool is_right, const char* what) {
  if (!is_right) fail(ErrorKind::kInvalidRequest, what, ": the shapes of the arguments disagree");
}

void bind_dequantize(const Codes& codes, const Table& table, const Floats& scales, const FloatsOut& out,
                     const std::optional<Floats>& zeros, const std::optional<Floats>& offsets, int64_t group_size,
                     const std::optional<Indices>& group_of, float factor) {
  const auto is_per_group = [&](const std::optional<Floats>& a) {
    return !a || (a->shape(0) == scales.shape(0) && a->shape(1) == scales.shape(1));
  };
  check_shape(out.shape(0) == codes.shape(0) && out.shape(1) == codes.shape(1) && scales.shape(0) == codes.shape(0) &&
                  is_per_group(zeros) && is_per_group(offsets),
              "dequantize");
  check_shape(group_of ? group_of->shape(0) == codes.shape(1)
                       : group_size > 0 && size_of(scales, 1) >= (size_of(codes, 1) + group_size - 1) / group_size,
              "dequantize: groups");
  const QuantizedRows from{.codes = codes.data(),
                           .rows = size_of(codes, 0),
                           .cols = size_of(codes, 1),
                           .table = table.data(),
                           .scales = scales.data(),
                           .zeros = zeros ? zeros->data() : nullptr,
                           .offsets = offsets ? offsets->data() : nullptr,
                           .groups = size_of(scales, 1),
                           .group_size = group_size,
                           .group_of = group_of ? group_of->data() : nullptr,
                           .factor = factor};
  float* to = out.data();
  const GilRelease release;
  dequantize(from, to);
}

void bind_unpack(const Words& words, const CodesOut& out, int bits, const std::vector<uint8_t>& positions,
                 bool packs_rows, bool transpose) {
  const PackedWords from{.data = words.data(),
                         .rows = size_of(words, 0),
                         .cols = size_of(words, 1),
                         .row_stride = words.stride(0),
                         .col_stride = words.stride(1),
                         .bits = bits,
                         .packs_rows = packs_rows,
                         .positions = positions};
  uint8_t* to = out.data();
  const int64_t rows = size_of(out, 0);
  const int64_t cols = size_of(out, 1);
  const GilRelease release;
  unpack_codes(from, transpose, to, rows, cols);
}

// A new array [rows, cols] that owns its memory.
template <class T>
std::pair<T*, nb::object> new_array(std::size_t rows, std::size_t cols) {
  auto memory = std::make_unique<T[]>(rows * cols);
  T* data = memory.get();
  const nb::capsule owner(memory.get(), [](void* p) noexcept { std::unique_ptr<T[]>(static_cast<T*>(p)); });
  memory.release();
  return {data, nb::cast(nb::ndarray<nb::numpy, T, nb::ndim<2>>(data, {rows, cols}, owner))};
}

nb::tuple bind_quantize(const Floats& values, int bits, int64_t group, bool symmetric, bool clip_search,
                        const std::string& scale_dtype) {
  const int64_t rows = size_of(values, 0);
  const int64_t cols = size_of(values, 1);
  if (bits != 4 && bits != 8) fail(ErrorKind::kInvalidRequest, "quantize_rows: bits = ", bits, " must be 4 or 8");
  if (group < 0 || (group > 0 && cols % group != 0)) {
    fail(ErrorKind::kInvalidRequest, "quantize_rows: group = ", group, " must divide the ", cols, " columns, or be 0");
  }
  const QuantizeSpec spec{bits == 4 ? WeightFormat::kInt4 : WeightFormat::kInt8, group, parse_float_dtype(scale_dtype),
                          !symmetric, clip_search};
  const auto groups = group == 0 ? std::size_t{1} : values.shape(1) / static_cast<std::size_t>(group);
  const auto [codes, codes_array] = new_array<uint8_t>(values.shape(0), values.shape(1));
  const auto [scales, scales_array] = new_array<float>(values.shape(0), groups);
  QuantizedOut out{codes, scales, nullptr};
  nb::object zeros_array = nb::none();
  if (!symmetric) std::tie(out.zeros, zeros_array) = new_array<uint8_t>(values.shape(0), groups);
  {
    const float* from = values.data();
    const GilRelease release;
    quantize_rows(spec, from, rows, cols, out);
  }
  return nb::make_tuple(codes_array, scales_array, zeros_array);
}

}  // namespace

void bind_checkpoint(nb::module_& m) {
  m.def("dequantize", &bind_dequantize, "codes"_a, "table"_a, "scales"_a, "out"_a, nb::kw_only(),
        "zeros"_a = nb::none(), "offsets"_a = nb::none(), "group_size"_a = 0, "group_of"_a = nb::none(),
        "factor"_a = 1.0f,
        "out[r, k] = ((table[codes[r, k]] - zeros[r, g]) * scales[r, g] - offsets[r, g]) * factor, g = group_of[k] or "
        "k // group_size; each operation rounds once to float32.");
  m.def("unpack_codes", &bind_unpack, "words"_a, "out"_a, nb::kw_only(), "bits"_a, "positions"_a, "packs_rows"_a,
        "transpose"_a,
        "Codes of 4 or 8 bits out of 32-bit words; code j of a word lies at bit positions[j] * bits. A word holds "
        "codes of consecutive rows or columns; `out` is the matrix of codes or its transpose.");
  m.def("quantize_rows", &bind_quantize, "values"_a, "bits"_a, "group"_a, nb::kw_only(), "symmetric"_a = true,
        "clip_search"_a = true, "scale_dtype"_a = "float16",
        "Rounds rows to nearest, as LLM(quantization=...) does: values [R, K] float32 -> (codes uint8 [R, K], scales "
        "float32 [R, groups], exact in scale_dtype, zeros uint8 [R, groups] or None). bits 4 or 8; group: columns that "
        "share a scale, 0 for whole rows. W = (code - zero) * scale, with zero = 8 or 128 if symmetric. clip_search "
        "takes the scale with the least squared error out of nine, else the one that reaches the largest value.");
}

}  // namespace fastllm
