// csrc/cuda/gemm and csrc/cuda/moe in the emulator: products with packed weights against plain loops in double, and
// what must not change a bit: the number of tokens, tiles, a split, the order in which lanes and blocks run.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "core/dtype.h"
#include "cuda/gemm/gemm.h"
#include "cuda/gemm/pack_weights.h"
#include "cuda/moe/moe.h"
#include "harness.h"

namespace fastllm::test {
namespace {

using namespace fastllm::cuda;

using fl::simt::AsyncCopies;
using fl::simt::Order;

template <class T>
struct OnDevice {
  OnDevice(fl::Stream& s, const std::vector<T>& values)
      : stream(s), size(values.size()), buffer(s.device(), static_cast<int64_t>(size * sizeof(T)), "test array") {
    stream.upload(buffer.data(), values.data(), buffer.size());
  }
  [[nodiscard]] T* data() const { return reinterpret_cast<T*>(buffer.data()); }
  [[nodiscard]] std::vector<T> get() const {
    std::vector<T> values(size);
    stream.download(values.data(), buffer.data(), buffer.size());
    return values;
  }
  fl::Stream& stream;
  std::size_t size;
  fl::DeviceBuffer buffer;
};

std::size_t at(int64_t i) { return static_cast<std::size_t>(i); }

float rounded(WeightFormat format, float x) {
  return format == WeightFormat::kF16 ? to_float(to_f16(x)) : to_float(to_bf16(x));
}

// A packed weight on the device with the values that it stands for.
struct Weight {
  Weight(fl::Stream& stream, const WeightDesc& desc, Random& random)
      : values(at(desc.num_experts * desc.n * desc.k)),
        memory(stream.device(), TileLayout(desc).expert_bytes * desc.num_experts, "weight"),
        packed{desc, memory.data()} {
    stream.fill(memory.data(), 0, memory.size());
    for (int64_t e = 0; e < desc.num_experts; ++e) {
      // In two pieces with a seam inside a strip.
      const int64_t seam = desc.n / 2 + desc.n % 7;
      fill(stream, e, 0, std::min(seam, desc.n), random);
      if (seam < desc.n) fill(stream, e, seam, desc.n - seam, random);
    }
  }

  void fill(fl::Stream& stream, int64_t expert, int64_t begin, int64_t rows, Random& random) {
    const WeightDesc& desc = packed.desc;
    float* out = values.data() + (expert * desc.n + begin) * desc.k;
    if (!has_codes(desc.format)) {
      std::vector<float> x(at(rows * desc.k));
      for (std::size_t i = 0; i < x.size(); ++i) {
        x[i] = static_cast<float>(random.real(-1, 1));
        out[i] = desc.format == WeightFormat::kF32 ? x[i] : rounded(desc.format, x[i]);
      }
      const OnDevice from(stream, x);
      pack_values(stream, packed, expert, begin, rows, from.data(), DType::kF32);
      return;
    }
    const int64_t groups = desc.groups();
    const int64_t group = desc.group > 0 ? desc.group : desc.k;
    const int largest = desc.format == WeightFormat::kInt4 ? 15 : 255;
    std::vector<uint8_t> codes(at(rows * desc.k));
    std::vector<float> scales(at(rows * groups));
    std::vector<uint8_t> zeros(at(rows * groups));
    const bool is_fp8 = desc.format == WeightFormat::kE4M3;
    for (auto& code : codes) {
      code = static_cast<uint8_t>(random.pick(0, largest));
      if (is_fp8 && (code & 0x7f) == 0x7f) code = 0;  // no NaN
    }
    for (auto& scale : scales) {
      scale = static_cast<float>(random.real(0.001, 0.1));
      if (desc.scale_dtype != DType::kF32) {
        scale = rounded(desc.scale_dtype == DType::kF16 ? WeightFormat::kF16 : WeightFormat::kBF16, scale);
      }
    }
    for (auto& zero : zeros) zero = static_cast<uint8_t>(random.pick(0, largest + (largest == 15 ? 1 : 0)));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t k = 0; k < desc.k; ++k) {
        const std::size_t s = at(r * groups + k / group);
        const int zero = desc.has_zeros ? zeros[s] : (largest + 1) / 2;
        const uint8_t code = codes[at(r * desc.k + k)];
        out[r * desc.k + k] = (is_fp8 ? to_float(e4m3{code}) : static_cast<float>(code - zero)) * scales[s];
      }
    }
    const OnDevice c(stream, codes);
    const OnDevice s(stream, scales);
    const OnDevice z(stream, zeros);
    pack_codes(stream, packed, expert, begin, rows, c.data(), s.data(), desc.has_zeros ? z.data() : nullptr);
  }

  std::vector<float> values;
  fl::DeviceBuffer memory;
  PackedWeight packed;
};

struct Workspace {
  Workspace(fl::Stream& stream, int64_t rows, int64_t features)
      : partials(stream, std::vector<float>(at(gemm_partials(rows, features)))),
        tickets(stream, std::vector<uint32_t>(at(gemm_tickets(rows)))) {}
  [[nodiscard]] GemmWorkspace get() const {
    return {partials.data(), static_cast<int64_t>(partials.size), tickets.data(), static_cast<int64_t>(tickets.size)};
  }
  OnDevice<float> partials;
  OnDevice<uint32_t> tickets;
};

// y for rows of x [rows, K]; with tile_rows the tile is forced.
std::vector<float> multiply(fl::Stream& stream, const Weight& w, const std::vector<float>& x,
                            const std::vector<float>& bias, int tile_rows = 0) {
  const WeightDesc& desc = w.packed.desc;
  const auto rows = static_cast<int64_t>(x.size()) / desc.k;
  const bool is_float = desc.format == WeightFormat::kF32;
  const int64_t padded = TileLayout(desc).num_chunks * kChunkCols;
  const OnDevice in(stream, x);
  const OnDevice converted(stream, std::vector<uint16_t>(at(std::max<int64_t>(1, rows * padded))));
  const OnDevice b(stream, bias);
  const OnDevice y(stream, std::vector<float>(at(rows * desc.n), std::numeric_limits<float>::quiet_NaN()));
  const Workspace workspace(stream, rows, desc.n);
  GemmCall call;
  call.weight = view_of(w.packed);
  const int64_t act_groups = (desc.k + desc.act_group() - 1) / desc.act_group();
  const OnDevice groups(stream, std::vector<ActGroup>(at(std::max<int64_t>(1, rows * act_groups))));
  call.x = is_float ? static_cast<const void*>(in.data()) : converted.data();
  call.x_stride = is_float ? desc.k : padded;
  if (has_codes(desc.format) && has_act_codes(desc.act)) {
    quantize_rows(stream, in.data(), desc.k, rows, desc.k, desc.act, desc.act_group(),
                  reinterpret_cast<uint8_t*>(converted.data()), padded, groups.data());
    call.x_stride = padded * act_planes(desc.act);
    call.x_groups = groups.data();
  } else if (!is_float) {
    convert_rows(stream, in.data(), desc.k, rows, desc.k, desc.format, converted.data(), padded);
  }
  call.num_rows = rows;
  call.bias = bias.empty() ? nullptr : b.data();
  call.y = y.data();
  call.y_stride = desc.n;
  call.tile_rows = tile_rows;
  gemm(stream, call, workspace.get());
  for (const uint32_t ticket : workspace.tickets.get()) require_equal(ticket, 0u, "a ticket after the call");
  return y.get();
}

std::vector<float> random_floats(int64_t count, Random& random) {
  std::vector<float> x(at(count));
  for (float& v : x) v = static_cast<float>(random.real(-1, 1));
  return x;
}

void require_product(const Weight& w, const std::vector<float>& x, const std::vector<float>& bias,
                     const std::vector<float>& y, const std::string& what) {
  const WeightDesc& desc = w.packed.desc;
  const auto rows = static_cast<int64_t>(x.size()) / desc.k;
  for (int64_t m = 0; m < rows; ++m) {
    for (int64_t n = 0; n < desc.n; ++n) {
      double sum = bias.empty() ? 0.0 : bias[at(n)];
      double size = std::abs(sum);
      for (int64_t k = 0; k < desc.k; ++k) {
        const float v = x[at(m * desc.k + k)];
        const double term = static_cast<double>(desc.format == WeightFormat::kF32 ? v : rounded(desc.format, v)) *
                            w.values[at(n * desc.k + k)];
        sum += term;
        size += std::abs(term);
      }
      const double error = std::abs(y[at(m * desc.n + n)] - sum);
      require(error <= 2e-6 * size + 1e-6, what + ": row " + std::to_string(m) + ", output " + std::to_string(n) +
                                               " is " + std::to_string(y[at(m * desc.n + n)]) + ", expected " +
                                               std::to_string(sum));
    }
  }
}

struct Case {
  WeightFormat format;
  int64_t n, k, rows;
  int64_t group = 0;
  bool has_zeros = false;
  DType scale_dtype = DType::kF16;
  ActMode act = ActMode::kBF16;
};

WeightDesc desc_of(const Case& c, int64_t experts = 1) {
  WeightDesc desc{c.n, c.k, experts, c.format};
  desc.group = c.group;
  desc.has_zeros = c.has_zeros;
  desc.scale_dtype = c.group == 0 || c.format == WeightFormat::kE4M3 ? DType::kF32 : c.scale_dtype;
  desc.act = c.act;
  return desc;
}

const Case kCases[] = {
    {WeightFormat::kBF16, 128, 64, 1},
    {WeightFormat::kBF16, 200, 100, 9},
    {WeightFormat::kBF16, 16, 1200, 3},  // three segments
    {WeightFormat::kF16, 130, 70, 17},
    {WeightFormat::kF32, 37, 65, 11},
    {WeightFormat::kInt8, 128, 128, 5, 64},
    {WeightFormat::kInt8, 65, 192, 33, 0},
    {WeightFormat::kInt8, 40, 640, 2, 128, true, DType::kBF16},
    {WeightFormat::kInt4, 128, 128, 1, 128},
    {WeightFormat::kInt4, 192, 96, 8, 32, true},
    {WeightFormat::kInt4, 17, 1344, 7, 64, true, DType::kBF16},
    {WeightFormat::kInt4, 64, 1280, 65, 128},
    {WeightFormat::kInt4, 24, 576, 12, 0},
    {WeightFormat::kE4M3, 40, 200, 9, 64},
};

NATIVE_TEST(products_match_double) {
  Random random(options().seed);
  for (const Order order : {Order::kForward, Order::kShuffled}) {
    fl::Device device(
        {.ordinal = 0,
         .arch = 89,
         .simt = {order, order == Order::kForward ? AsyncCopies::kAtWait : AsyncCopies::kAtIssue, options().seed}});
    fl::Stream stream(device);
    for (const Case& c : kCases) {
      const Weight w(stream, desc_of(c), random);
      const std::vector<float> x = random_floats(c.rows * c.k, random);
      const std::vector<float> bias = random.chance(50) ? random_floats(c.n, random) : std::vector<float>{};
      const std::string what = std::string(name_of(c.format)) + " " + std::to_string(c.n) + "x" + std::to_string(c.k);
      require_product(w, x, bias, multiply(stream, w, x, bias), what);
    }
  }
}

// A row has the same bits alone, among others, in any tile, split or not, whatever the turns of lanes and blocks.
NATIVE_TEST(rows_do_not_depend_on_their_batch) {
  Random random(options().seed);
  for (const Case& c : {Case{WeightFormat::kBF16, 40, 1300, 40}, Case{WeightFormat::kInt4, 40, 1280, 40, 64, true},
                        Case{WeightFormat::kInt8, 24, 1088, 40, 0},
                        Case{WeightFormat::kInt4, 40, 200, 40, 128, true, DType::kF16, ActMode::kA8R},
                        Case{WeightFormat::kInt8, 150, 230, 40, 0, false, DType::kF32, ActMode::kA15},
                        Case{WeightFormat::kE4M3, 40, 200, 40, 128, false, DType::kF32, ActMode::kE4M3},
                        Case{WeightFormat::kE4M3, 150, 230, 40, 0, false, DType::kF32, ActMode::kE4M3}}) {
    fl::Device device({});
    fl::Stream stream(device);
    const Weight w(stream, desc_of(c), random);
    const std::vector<float> x = random_floats(c.rows * c.k, random);
    const std::vector<float> all = multiply(stream, w, x, {});
    for (const Order order : {Order::kReverse, Order::kShuffled}) {
      device.set_simt_options({order, AsyncCopies::kAtIssue, options().seed + 1});
      for (const auto& [begin, rows, tile] : {std::array{int64_t{5}, int64_t{1}, int64_t{0}},
                                              {0, 12, 8},
                                              {3, 20, 16},
                                              {8, 32, 0},
                                              {0, 40, 64},
                                              {0, 40, 8}}) {
        const std::vector<float> part(x.begin() + begin * c.k, x.begin() + (begin + rows) * c.k);
        const std::vector<float> y = multiply(stream, w, part, {}, static_cast<int>(tile));
        require(std::equal(y.begin(), y.end(), all.begin() + begin * c.n), "rows changed with their batch");
      }
    }
  }
}

NATIVE_TEST(nan_in_one_row_stays_there) {
  Random random(options().seed);
  fl::Device device({});
  fl::Stream stream(device);
  const Weight w(stream, desc_of({WeightFormat::kInt4, 32, 128, 4, 32}), random);
  std::vector<float> x = random_floats(4 * 128, random);
  const std::vector<float> clean = multiply(stream, w, x, {});
  x[128 + 77] = std::numeric_limits<float>::quiet_NaN();
  const std::vector<float> y = multiply(stream, w, x, {});
  for (std::size_t i = 0; i < y.size(); ++i) {
    if (i / 32 == 1) {
      require(std::isnan(y[i]), "a NaN got lost");
    } else {
      require_equal(y[i], clean[i], "a neighbour of a NaN");
    }
  }
}

NATIVE_TEST(rows_are_read_back) {
  Random random(options().seed);
  fl::Device device({});
  fl::Stream stream(device);
  for (const Case& c : kCases) {
    const Weight w(stream, desc_of(c), random);
    const std::vector<int32_t> ids = {0, static_cast<int32_t>(c.n - 1), static_cast<int32_t>(c.n / 2)};
    const OnDevice rows(stream, ids);
    const OnDevice out(stream, std::vector<float>(at(3 * c.k)));
    gather_rows(stream, view_of(w.packed), rows.data(), 3, 1.0f, out.data(), c.k);
    const std::vector<float> got = out.get();
    for (int64_t i = 0; i < 3; ++i) {
      for (int64_t k = 0; k < c.k; ++k) {
        require_equal(got[at(i * c.k + k)], w.values[at(ids[at(i)] * c.k + k)], "a weight read back");
      }
    }
  }
}

// The layer of experts from routed tokens to their sum, against loops.
NATIVE_TEST(experts) {
  Random random(options().seed);
  fl::Device device({});
  fl::Stream stream(device);
  for (const auto& [tokens, num_experts, top_k, format] :
       {std::tuple{int64_t{1}, int64_t{4}, int64_t{2}, WeightFormat::kInt4},
        {13, 40, 3, WeightFormat::kBF16},
        {50, 3, 3, WeightFormat::kInt8},
        {9, 5, 1, WeightFormat::kF32}}) {
    const int64_t k = 64;
    const int64_t n = 48;
    Case c{format, n, k, tokens, is_integer(format) ? int64_t{32} : int64_t{0}};
    const Weight w(stream, desc_of(c, num_experts), random);
    const std::vector<float> x = random_floats(tokens * k, random);
    const std::vector<float> logits = random_floats(tokens * num_experts, random);
    const std::vector<float> bias = random_floats(num_experts * n, random);
    const int64_t pairs = tokens * top_k;
    const int tile_rows = 8;

    const OnDevice in(stream, x);
    const OnDevice converted(stream, std::vector<uint16_t>(at(tokens * k)));
    const OnDevice route(stream, logits);
    const OnDevice b(stream, bias);
    const OnDevice experts(stream, std::vector<int32_t>(at(pairs)));
    const OnDevice weights(stream, std::vector<float>(at(pairs)));
    const OnDevice token_of(stream, std::vector<int32_t>(at(pairs)));
    const OnDevice slot_of(stream, std::vector<int32_t>(at(pairs)));
    const OnDevice tiles(stream, std::vector<RowTile>(at(max_moe_tiles(pairs, num_experts, tile_rows))));
    const OnDevice num_tiles(stream, std::vector<int32_t>(1));
    const OnDevice slots(stream, std::vector<float>(at(pairs * n)));
    const OnDevice y(stream, std::vector<float>(at(tokens * n)));
    const Workspace workspace(stream, pairs, n);

    MoeRouteArgs routing;
    routing.logits = {route.data(), DType::kF32, tokens, num_experts, num_experts};
    routing.top_k = top_k;
    routing.renormalize = true;
    routing.experts = experts.data();
    routing.weights = weights.data();
    moe_route(stream, routing);
    const MoeSlots sorted{token_of.data(), slot_of.data(), tiles.data(), num_tiles.data()};
    moe_sort(stream, experts.data(), tokens, top_k, num_experts, tile_rows, sorted, nullptr);
    const bool is_float = format == WeightFormat::kF32;
    if (!is_float) convert_rows(stream, in.data(), k, tokens, k, format, converted.data(), k);
    GemmCall call;
    call.weight = view_of(w.packed);
    call.x = is_float ? static_cast<const void*>(in.data()) : converted.data();
    call.x_stride = k;
    call.num_rows = pairs;
    call.bias = b.data();
    call.y = slots.data();
    call.y_stride = n;
    call.row_ids = token_of.data();
    call.tiles = tiles.data();
    call.num_tiles = num_tiles.data();
    call.max_tiles = static_cast<int64_t>(tiles.size);
    call.tile_rows = tile_rows;
    gemm(stream, call, workspace.get());
    moe_combine(stream, slots.data(), weights.data(), slot_of.data(), tokens, top_k, n, y.data(), n);

    const std::vector<int32_t> chosen = experts.get();
    const std::vector<float> shares = weights.get();
    const std::vector<float> got = y.get();
    for (int64_t t = 0; t < tokens; ++t) {
      const float* row = logits.data() + t * num_experts;
      std::vector<int32_t> order(at(num_experts));
      for (int64_t e = 0; e < num_experts; ++e) order[at(e)] = static_cast<int32_t>(e);
      std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t c2) { return row[a] > row[c2]; });
      double sum = 0;
      for (int64_t j = 0; j < top_k; ++j) sum += std::exp(static_cast<double>(row[order[at(j)]]));
      std::vector<double> want(at(n));
      for (int64_t j = 0; j < top_k; ++j) {
        const int32_t e = order[at(j)];
        require_equal(chosen[at(t * top_k + j)], e, "a chosen expert");
        const double share = std::exp(static_cast<double>(row[e])) / sum;
        require(std::abs(share - shares[at(t * top_k + j)]) < 1e-6, "the weight of an expert");
        for (int64_t i = 0; i < n; ++i) {
          double dot = bias[at(e * n + i)];
          for (int64_t c2 = 0; c2 < k; ++c2) {
            const float v = x[at(t * k + c2)];
            dot += static_cast<double>(is_float ? v : rounded(format, v)) * w.values[at((e * n + i) * k + c2)];
          }
          want[at(i)] += share * dot;
        }
      }
      for (int64_t i = 0; i < n; ++i) {
        require(std::abs(got[at(t * n + i)] - want[at(i)]) < 2e-4, "the sum of the experts");
      }
    }
  }
}

}  // namespace
}  // namespace fastllm::test
