// What the programs here share: arrays and weights in memory of a backend, timing of recorded steps, and a report with
// the limits of the machine beside each figure.
//
//   bench_NAME [--device cuda|cuda:N|cuda:emulated] [--ceilings FILE] [--json FILE] [--smoke]
//
// --ceilings is what bench_ceilings wrote; without it, shares of the tensor cores are left out. --smoke runs every case
// once in a small size: it says that the program works, and its times say nothing.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "ops/ops.h"

namespace fastllm::bench {

// Arrays of one case in memory of a backend; gone with it.
class Arrays {
 public:
  explicit Arrays(Backend& backend) : backend_(backend) {}

  template <class T>
  T* make(int64_t count) {
    return reinterpret_cast<T*>(allocate(count * static_cast<int64_t>(sizeof(T))));
  }
  template <class T>
  T* put(const std::vector<T>& values) {
    const auto count = static_cast<int64_t>(values.size());
    T* to = make<T>(count);
    backend_.upload(to, values.data(), count * static_cast<int64_t>(sizeof(T)));
    return to;
  }
  Mat mat(int64_t rows, int64_t cols) { return {make<float>(rows * cols), DType::kF32, rows, cols, cols}; }
  Mat random_mat(int64_t rows, int64_t cols, uint64_t seed);  // uniform in [-1, 1)
  // Random values of the size that keeps activations at one; for integers random codes with equal scales.
  PackedWeight random_weight(WeightDesc desc, uint64_t seed);

 private:
  std::byte* allocate(int64_t bytes);

  Backend& backend_;
  std::vector<DeviceMemory> memory_;
};

std::vector<float> random_floats(int64_t count, uint64_t seed);
std::vector<float> download(Backend& backend, const Mat& mat);
// Fills the rows of a weight from blocks of random rows: what fill_random() does, in the time of the copies.
void fill_weight(Backend& backend, const PackedWeight& weight, uint64_t seed);

// Seconds of one call.
struct Timing {
  double median = 0.0, p10 = 0.0, p90 = 0.0;
};

struct Row {
  std::string name;
  Timing time;
  double bytes = 0.0;     // that must move; 0: not a matter of memory
  double flops = 0.0;     // that must be done; 0: not a matter of arithmetic
  std::string target;     // floor and goal on an H200
  bool is_token = false;  // one call makes one token: a rate is printed, too
};

class Bench {
 public:
  Bench(const char* name, int argc, char** argv);

  [[nodiscard]] Backend& backend() { return *backend_; }
  [[nodiscard]] bool is_smoke() const { return is_smoke_; }

  // f(0) ... f(calls - 1), recorded as one graph and replayed: inputs should rotate over more than the caches hold.
  Timing time(int calls, const std::function<void(int)>& f);
  // f as the host calls it, with what it waits for.
  Timing time_host(const std::function<void()>& f);
  void replay();  // the graph that time() recorded last
  // Compares f on the device with f on the reference backend; throws if they differ by more than `limit` of the
  // result's norm.
  void check(const char* what, double limit, const std::function<std::vector<float>(Backend&)>& f);
  void report(const Row& row);
  void write_json() const;  // where --json said

 private:
  void measure_copy();

  std::string name_;
  std::string json_file_;
  bool is_smoke_ = false;
  std::unique_ptr<Backend> backend_;
  uint64_t last_key_ = 0;
  double copy_bytes_per_s_ = 0.0;
  std::optional<double> mma_flops_per_s_;
  std::vector<Row> rows_;
};

// main() of a program: the exit status is 1 after an error, which is printed, and 2 after a wrong option.
int bench_main(const char* name, int argc, char** argv, void (*run)(Bench&));

}  // namespace fastllm::bench
