#include "bench.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <sstream>

#include "core/checked.h"
#include "cuda/emulated.h"
#include "cuda/loader.h"
#include "reference/reference_backend.h"

namespace fastllm::bench {
namespace {

constexpr int64_t kRowsAtOnce = 256;
constexpr int kNumSamples = 9;
constexpr double kSampleSeconds = 0.03;

double now_s() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

std::unique_ptr<Backend> open(const std::string& device) {
  if (device == "cuda:emulated") return make_emulated_cuda_backend({});
  if (device == "cuda") return make_cuda_backend(0);
  int ordinal = 0;
  if (device.starts_with("cuda:") &&
      std::from_chars(device.data() + 5, device.data() + device.size(), ordinal).ec == std::errc{}) {
    return make_cuda_backend(ordinal);
  }
  fail(ErrorKind::kDevice, "--device ", device, ": expected cuda, cuda:N or cuda:emulated");
}

// The number behind "name": in a JSON file that bench_ceilings wrote.
double number_in(const std::string& file, const std::string& name) {
  std::ifstream in(file);
  std::stringstream text;
  text << in.rdbuf();
  const std::string all = text.str();
  const std::size_t at = all.find("\"" + name + "\":");
  if (!in || at == std::string::npos) {
    fail(ErrorKind::kInvalidRequest, file, " has no \"", name, "\"; it should come from bench_ceilings");
  }
  return std::strtod(all.c_str() + at + name.size() + 3, nullptr);
}

}  // namespace

std::vector<float> random_floats(int64_t count, uint64_t seed) {
  std::vector<float> x(static_cast<std::size_t>(count));
  uint64_t state = seed * 0x9E3779B97F4A7C15u + 1;
  for (float& value : x) {  // a linear congruential stream: speed matters here, randomness hardly
    state = state * 6364136223846793005u + 1442695040888963407u;
    value = static_cast<float>(state >> 40) * 0x1p-23f - 1.0f;
  }
  return x;
}

std::vector<float> download(Backend& backend, const Mat& mat) {
  std::vector<float> x(static_cast<std::size_t>(mat.rows * mat.cols));
  backend.download(x.data(), mat.data, std::ssize(x) * size_of(DType::kF32));
  return x;
}

void fill_weight(Backend& backend, const PackedWeight& weight, uint64_t seed) {
  const WeightDesc& desc = weight.desc;
  std::vector<float> values = random_floats(kRowsAtOnce * desc.k, seed);
  const float bound = std::sqrt(3.0f / static_cast<float>(desc.k));  // variance 1 / K
  std::vector<uint8_t> codes;
  const std::vector<float> scales(static_cast<std::size_t>(kRowsAtOnce * desc.groups()), 0x1p-8f);  // in any type
  if (is_integer(desc.format)) {
    const int range = desc.format == WeightFormat::kInt4 ? 16 : 256;
    for (const float x : values) codes.push_back(static_cast<uint8_t>((x + 1.0f) * 0.5f * static_cast<float>(range)));
  } else {
    for (float& x : values) x *= bound;
  }
  for (int64_t expert = 0; expert < desc.num_experts; ++expert) {
    for (int64_t row = 0; row < desc.n; row += kRowsAtOnce) {
      const int64_t rows = std::min(kRowsAtOnce, desc.n - row);
      if (is_integer(desc.format)) {
        backend.pack_codes(weight, {codes.data(), scales.data(), nullptr, row, rows, expert});
      } else {
        backend.pack(weight, {values.data(), DType::kF32, desc.k, 1, row, rows, expert});
      }
    }
  }
}

std::byte* Arrays::allocate(int64_t bytes) {
  memory_.push_back(backend_.allocate(bytes, "benchmark", Contents::kZero));
  return memory_.back().data();
}

Mat Arrays::random_mat(int64_t rows, int64_t cols, uint64_t seed) {
  return {put(random_floats(rows * cols, seed)), DType::kF32, rows, cols, cols};
}

PackedWeight Arrays::random_weight(WeightDesc desc, uint64_t seed) {
  const PackedWeight weight{desc, allocate(backend_.packed_bytes(desc))};
  fill_weight(backend_, weight, seed);
  return weight;
}

Bench::Bench(const char* name, int argc, char** argv) : name_(name) {
  std::string device = "cuda";
  for (int i = 1; i < argc; ++i) {
    const std::string option = argv[i];
    if (option == "--smoke") {
      is_smoke_ = true;
    } else if (i + 1 < argc && option == "--device") {
      device = argv[++i];
    } else if (i + 1 < argc && option == "--json") {
      json_file_ = argv[++i];
    } else if (i + 1 < argc && option == "--ceilings") {
      mma_flops_per_s_ = number_in(argv[++i], "mma_bf16_flops_per_s");
    } else {
      fail(ErrorKind::kInvalidRequest, argv[0],
           " [--device cuda|cuda:N|cuda:emulated] [--ceilings FILE] [--json FILE] [--smoke]");
    }
  }
  backend_ = open(device);
  measure_copy();
}

// Copies of memory on the device: each byte is read and written. Three pairs of buffers, so that no cache helps.
void Bench::measure_copy() {
  Arrays arrays(*backend_);
  const KvSpec spec{is_smoke_ ? 1 : 1024, is_smoke_ ? 64 : 1024, DType::kBF16};  // one page: 64 MiB
  KvLayer pages{spec, nullptr, backend_->kv_page_bytes(spec), 6};
  pages.data = arrays.make<std::byte>(6 * pages.page_bytes);
  const Timing timing = time(3, [&](int i) {
    const int32_t from = i;
    const int32_t to = i + 3;
    backend_->copy_pages({pages, {&from, 1}, {&to, 1}});
  });
  copy_bytes_per_s_ = 2.0 * static_cast<double>(pages.page_bytes) / timing.median;
  std::printf("%s on %s: copies move %.0f GB/s", name_.c_str(), backend_->name(), copy_bytes_per_s_ / 1e9);
  if (mma_flops_per_s_.has_value()) std::printf(", mma.sync does %.0f TFLOP/s", *mma_flops_per_s_ / 1e12);
  std::printf("%s\n", is_smoke_ ? "   (smoke: figures mean nothing)" : "");
}

void Bench::replay() {
  backend_->run(last_key_, [] {});
}

Timing Bench::time(int calls, const std::function<void(int)>& f) {
  f(0);  // loads its kernels: not while they are recorded
  backend_->run(++last_key_, [&] {
    for (int i = 0; i < calls; ++i) f(i);
  });
  Timing all = time_host([&] { replay(); });
  for (double* t : {&all.median, &all.p10, &all.p90}) *t /= calls;
  return all;
}

Timing Bench::time_host(const std::function<void()>& f) {
  const auto seconds_of = [&](int64_t times) {
    const double begin = now_s();
    for (int64_t n = 0; n < times; ++n) f();
    backend_->wait();
    return (now_s() - begin) / static_cast<double>(times);
  };
  const double first = seconds_of(1);  // warms up
  if (is_smoke_) return {first, first, first};
  const auto times = static_cast<int64_t>(std::clamp(kSampleSeconds / seconds_of(3), 1.0, 1e5));
  std::vector<double> samples;
  for (int i = 0; i < kNumSamples; ++i) samples.push_back(seconds_of(times));
  std::ranges::sort(samples);
  return {samples[kNumSamples / 2], samples[kNumSamples / 10], samples[kNumSamples - 1 - kNumSamples / 10]};
}

void Bench::check(const char* what, double limit, const std::function<std::vector<float>(Backend&)>& f) {
  const std::vector<float> got = f(*backend_);
  const std::unique_ptr<Backend> reference = make_reference_backend();
  const std::vector<float> wanted = f(*reference);
  double error = 0.0;
  double norm = 0.0;
  for (std::size_t i = 0; i < wanted.size(); ++i) {
    const double difference = static_cast<double>(got[i]) - static_cast<double>(wanted[i]);
    error += difference * difference;
    norm += static_cast<double>(wanted[i]) * static_cast<double>(wanted[i]);
  }
  const double relative = std::sqrt(error / norm);
  if (!(relative <= limit)) {
    fail(ErrorKind::kInternal, what, ": differs from the reference by ", relative, " of its norm, ", limit,
         " is allowed");
  }
  std::printf("%s: within %.1e of the reference\n", what, relative);
}

void Bench::report(const Row& row) {
  std::printf("%-52s %10.2f us (%.2f to %.2f)", row.name.c_str(), row.time.median * 1e6, row.time.p10 * 1e6,
              row.time.p90 * 1e6);
  if (row.is_token) std::printf("  %6.1f tok/s", 1.0 / row.time.median);
  if (row.bytes > 0.0) {
    const double rate = row.bytes / row.time.median;
    std::printf("  %6.0f GB/s %5.1f %% of copy", rate / 1e9, 100.0 * rate / copy_bytes_per_s_);
  }
  if (row.flops > 0.0) {
    const double rate = row.flops / row.time.median;
    std::printf("  %6.1f TFLOP/s", rate / 1e12);
    if (mma_flops_per_s_.has_value()) std::printf(" %5.1f %% of mma", 100.0 * rate / *mma_flops_per_s_);
  }
  if (!row.target.empty()) std::printf("   [%s]", row.target.c_str());
  std::printf("\n");
  std::fflush(stdout);
  rows_.push_back(row);
}

void Bench::write_json() const {
  if (json_file_.empty()) return;
  std::ofstream out(json_file_);
  out << "{\"bench\": \"" << name_ << "\", \"device\": \"" << backend_->name()
      << "\", \"is_smoke\": " << (is_smoke_ ? "true" : "false") << ", \"copy_bytes_per_s\": " << copy_bytes_per_s_;
  if (mma_flops_per_s_.has_value()) out << ", \"mma_bf16_flops_per_s\": " << *mma_flops_per_s_;
  out << ", \"rows\": [";
  for (std::size_t i = 0; i < rows_.size(); ++i) {
    const Row& row = rows_[i];
    out << (i == 0 ? "\n" : ",\n") << " {\"name\": \"" << row.name << "\", \"seconds\": " << row.time.median
        << ", \"p10\": " << row.time.p10 << ", \"p90\": " << row.time.p90;
    if (row.bytes > 0.0) out << ", \"share_of_copy\": " << row.bytes / row.time.median / copy_bytes_per_s_;
    if (row.flops > 0.0) out << ", \"flops_per_s\": " << row.flops / row.time.median;
    out << ", \"target\": \"" << row.target << "\"}";
  }
  out << "\n]}\n";
  out.close();
  if (!out) fail(ErrorKind::kInvalidRequest, json_file_, ": cannot be written");
}

int bench_main(const char* name, int argc, char** argv, void (*run)(Bench&)) {
  try {
    Bench bench(name, argc, argv);
    run(bench);
    bench.write_json();
    return 0;
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return error.kind() == ErrorKind::kInvalidRequest ? 2 : 1;
  }
}

}  // namespace fastllm::bench
