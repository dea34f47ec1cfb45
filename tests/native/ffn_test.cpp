// A fused feed-forward layer has the bits of the operations that it stands for, on each level: for widths of which the
// ups begin within a panel, for rows of one and of several groups, for each kind of weight and activation.
#include <cstring>
#include <vector>

#include "core/buffer.h"
#include "cpu/cpu_backend.h"
#include "harness.h"

namespace fastllm::test {
namespace {

struct Kind {
  const char* name;
  WeightFormat format;
  int64_t group = 0;
  ActMode act = ActMode::kA8R;
  bool has_zeros = false;
};
constexpr Kind kKinds[] = {
    {"int4 of 32", WeightFormat::kInt4, 32},
    {"int4 of 128, zeros", WeightFormat::kInt4, 128, ActMode::kA8R, true},
    {"int4 of 64, a15", WeightFormat::kInt4, 64, ActMode::kA15},
    {"int8 of 64, bf16", WeightFormat::kInt8, 64, ActMode::kBF16},
    {"int8 of rows", WeightFormat::kInt8, 0},
    {"bf16", WeightFormat::kBF16},
    {"f32", WeightFormat::kF32},
};

class Weight {
 public:
  Weight(Backend& backend, std::mt19937_64& random, const Kind& kind, int64_t n, int64_t k) {
    WeightDesc desc;
    desc.n = n;
    desc.k = k;
    desc.format = kind.format;
    desc.act = kind.act;
    desc.has_zeros = kind.has_zeros;
    desc.group = kind.group;
    const bool is_integer = kind.format == WeightFormat::kInt4 || kind.format == WeightFormat::kInt8;
    if (is_integer) desc.scale_dtype = kind.group == 0 ? DType::kF32 : DType::kF16;
    memory_ = Buffer(backend.packed_bytes(desc), "weight");
    packed_ = {desc, memory_.data()};
    const auto count = static_cast<std::size_t>(n * k);
    if (!is_integer) {
      std::vector<float> values(count);
      for (float& v : values) v = std::normal_distribution<float>(0.0f, 0.05f)(random);
      backend.pack(packed_, {values.data(), DType::kF32, k, 1, 0, n, 0});
      return;
    }
    std::vector<uint8_t> codes(count), zeros(static_cast<std::size_t>(n * desc.groups()));
    std::vector<float> scales(zeros.size());
    for (uint8_t& c : codes)
      c = static_cast<uint8_t>(random() % (kind.format == WeightFormat::kInt4 ? 16 : 255) +
                               (kind.format == WeightFormat::kInt4 ? 0 : 1));
    for (float& s : scales) s = static_cast<float>(random() % 64 + 1) / 1024.0f;
    for (uint8_t& z : zeros) z = static_cast<uint8_t>(random() % 16);
    backend.pack_codes(packed_, {codes.data(), scales.data(), desc.has_zeros ? zeros.data() : nullptr, 0, n, 0});
  }
  [[nodiscard]] const PackedWeight& packed() const { return packed_; }

 private:
  Buffer memory_;
  PackedWeight packed_;
};

struct Rows {
  Rows(int64_t num_rows, int64_t num_cols) : values(static_cast<std::size_t>(num_rows * num_cols)), cols(num_cols) {}
  Mat mat() { return {values.data(), DType::kF32, static_cast<int64_t>(values.size()) / cols, cols, cols}; }
  std::vector<float> values;
  int64_t cols;
};

void compare(Backend& backend, std::mt19937_64& random, const Kind& kind, int64_t hidden, int64_t ffn, int64_t rows) {
  const Weight gate_up(backend, random, kind, 2 * ffn, hidden);
  const Weight down(backend, random, kind, hidden, ffn);
  Rows x(rows, hidden), both(rows, 2 * ffn), activated(rows, ffn), want(rows, hidden), got(rows, hidden);
  for (float& v : x.values) v = std::normal_distribution<float>()(random);
  x.values[static_cast<std::size_t>(hidden / 2)] = 300.0f;  // an outlier, which a8r gives a second byte
  for (const Activation activation : {Activation::kSilu, Activation::kGeluTanh, Activation::kClampedSwiglu}) {
    const ActivationSpec spec{activation};
    backend.linear({x.mat(), &gate_up.packed(), nullptr, both.mat()});
    backend.gated_activation({both.mat(), spec, activated.mat()});
    backend.linear({activated.mat(), &down.packed(), nullptr, want.mat()});
    backend.dense_ffn({x.mat(), &gate_up.packed(), &down.packed(), spec, {}, {}, got.mat()});
    require(std::memcmp(got.values.data(), want.values.data(), want.values.size() * sizeof(float)) == 0,
            std::string(backend.name()) + ", " + kind.name + ", hidden " + std::to_string(hidden) + ", F " +
                std::to_string(ffn) + ", rows " + std::to_string(rows));
  }
}

NATIVE_TEST(a_fused_ffn_has_the_bits_of_its_parts) {
  std::mt19937_64 random(options().seed);
  for (const CpuIsa isa : supported_isas()) {
    for (const int num_threads : {1, 3}) {
      const auto backend = make_cpu_backend(num_threads, isa);
      OpLimits limits;
      limits.max_tokens = 200;
      limits.max_features = 800;
      limits.ffn_features = 400;
      backend->reserve(limits);
      for (const Kind& kind : kKinds) {
        for (const int64_t rows : {1, 2, 7, 97, 200}) {
          if (isa == CpuIsa::kScalar && rows > 7) continue;  // slow, and cut as on the others
          compare(*backend, random, kind, 72, 40, rows);
          compare(*backend, random, kind, 133, 400, rows);
        }
      }
    }
  }
}

}  // namespace
}  // namespace fastllm::test
