// Runs every case of conformance_cases.h and writes what came out, or compares it with what another build wrote. Built
// once for the emulator and once for a GPU: tools/gpu_check.sh has both run on the same inputs.
//
//   cuda_conformance_emulated --write FILE [--seed N]
//   cuda_conformance --compare FILE [--seed N]        exit code 1 if any case differs
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <limits>
#include <string>

#include "conformance_cases.h"
#include "conformance_inputs.h"
#include "core/error.h"

namespace fl::conformance {
namespace {

constexpr std::size_t kNumWords = std::size_t{kThreads} * kWordsOut;

std::vector<uint32_t> run(Stream& stream, const Case& c, uint64_t seed) {
  const std::vector<uint32_t> words = inputs(c.input, seed);
  std::vector<uint32_t> results(kNumWords);
  const auto bytes_of = [](const std::vector<uint32_t>& v) {
    return static_cast<int64_t>(v.size() * sizeof(uint32_t));
  };
  const DeviceBuffer in(stream.device(), bytes_of(words), "inputs");
  const DeviceBuffer out(stream.device(), bytes_of(results), "results");
  stream.upload(in.data(), words.data(), in.size());
  stream.fill(out.data(), 0, out.size());
  c.run(stream, reinterpret_cast<const uint32_t*>(in.data()), reinterpret_cast<uint32_t*>(out.data()));
  stream.download(results.data(), out.data(), out.size());
  stream.synchronize();
  return results;
}

bool is_alike(uint32_t got, uint32_t want, Compare compare) {
  if (got == want) return true;
  const auto g = std::bit_cast<float>(got);
  const auto w = std::bit_cast<float>(want);
  if (std::isnan(w) || std::isinf(w)) return std::isnan(w) && std::isnan(g);
  switch (compare) {
    case Compare::kApprox:  // subnormal numbers have fewer bits
      return std::fabs(g - w) <= std::fmax(1e-6f * std::fabs(w), 4 * std::numeric_limits<float>::denorm_min());
    case Compare::kOrderOne:
      return std::fabs(g - w) <= 1e-6f;
    case Compare::kMmaSum:
      return std::fabs(g - w) <= 4e-6f * std::fmax(std::fabs(w), 16.0f);
    case Compare::kMmaFp8:
      return std::fabs(g - w) <= 33 * 4 * 0x1p-13f;
    case Compare::kBits:
      break;
  }
  return false;
}

int main_of(int argc, char** argv) {
  std::string mode;
  std::string path;
  uint64_t seed = 1;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--seed") == 0) {
      seed = std::strtoull(argv[i + 1], nullptr, 10);
    } else {
      mode = argv[i];
      path = argv[i + 1];
    }
  }
  if (mode != "--write" && mode != "--compare") {
    std::cerr << "usage: " << argv[0] << " --write FILE | --compare FILE [--seed N]\n";
    return 2;
  }
  Device device({});
  Stream stream(device);
  std::cout << device.properties().name << "\n";
  std::fstream file(path, std::ios::binary | (mode == "--write" ? std::ios::out | std::ios::trunc : std::ios::in));
  if (!file) fastllm::fail(fastllm::ErrorKind::kInvalidRequest, path, " cannot be opened");
  int num_bad = 0;
  for (const Case& c : cases()) {
    const std::vector<uint32_t> got = run(stream, c, seed);
    if (mode == "--write") {
      file.write(reinterpret_cast<const char*>(got.data()), static_cast<std::streamsize>(kNumWords * sizeof(uint32_t)));
      continue;
    }
    std::vector<uint32_t> want(kNumWords);
    file.read(reinterpret_cast<char*>(want.data()), static_cast<std::streamsize>(kNumWords * sizeof(uint32_t)));
    if (!file) fastllm::fail(fastllm::ErrorKind::kInvalidRequest, path, " ends before ", c.name);
    std::size_t bad = 0;
    while (bad < kNumWords && is_alike(got[bad], want[bad], c.compare)) ++bad;
    if (bad == kNumWords) {
      std::printf("ok    %s\n", c.name);
      continue;
    }
    ++num_bad;
    std::printf("FAIL  %s: thread %zu, word %zu: 0x%08x, expected 0x%08x\n", c.name, bad / kWordsOut, bad % kWordsOut,
                got[bad], want[bad]);
  }
  return num_bad == 0 ? 0 : 1;
}

}  // namespace
}  // namespace fl::conformance

int main(int argc, char** argv) {
  try {
    return fl::conformance::main_of(argc, argv);
  } catch (const std::exception& e) {
    std::cerr << e.what() << "\n";
    return 1;
  }
}
