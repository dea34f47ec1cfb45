// Bytes a second of reading and copying, and FLOP/s of mma.sync with bf16: the limits that the other programs here set
// their figures against. (wgmma, which no kernel uses yet, reaches more on sm_90.)     bench_ceilings [--json FILE]
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <functional>

#include "ceilings.h"
#include "core/error.h"

namespace fastllm::bench {
namespace {

#if defined(FL_SIMT)
constexpr bool kIsEmulated = true;
#else
constexpr bool kIsEmulated = false;
#endif

// The fastest of several runs: for a limit, what others take away does not count.
double fastest(fl::Stream& stream, const std::function<void()>& f) {
  double best = 1e30;
  for (int i = 0; i < (kIsEmulated ? 1 : 20); ++i) {
    const auto begin = std::chrono::steady_clock::now();
    f();
    stream.synchronize();
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  return best;
}

int run(const char* json_file) {
  fl::Device device(fl::DeviceOptions{});
  fl::Stream stream(device);
  const int64_t bytes = int64_t{1} << (kIsEmulated ? 26 : 30);
  const fl::DeviceBuffer from(device, bytes, "read");
  const fl::DeviceBuffer to(device, bytes, "write");
  const fl::DeviceBuffer sink(device, 4, "sink");
  auto* const sink_word = reinterpret_cast<uint32_t*>(sink.data());
  stream.fill(from.data(), 0, bytes);
  stream.fill(sink.data(), 0, 4);
  const double read =
      static_cast<double>(bytes) / fastest(stream, [&] { launch_read(stream, from.data(), bytes, sink_word); });
  const double copy =
      2.0 * static_cast<double>(bytes) / fastest(stream, [&] { stream.copy(to.data(), from.data(), bytes); });
  const int64_t blocks = kIsEmulated ? 1 : int64_t{4} * device.properties().num_sms;
  const int rounds = kIsEmulated ? 2 : 20000;
  const double flops = 2.0 * 16 * 8 * 16 * kMmasPerRound * kMmaWarps * static_cast<double>(blocks) * rounds;
  const double mma = flops / fastest(stream, [&] { launch_mma(stream, blocks, rounds, sink_word); });
  std::printf("%s: reads %.0f GB/s, copies %.0f GB/s, mma.sync bf16 %.1f TFLOP/s\n", device.properties().name.c_str(),
              read / 1e9, copy / 1e9, mma / 1e12);
  if (json_file == nullptr) return 0;
  std::ofstream out(json_file);
  out << "{\"bench\": \"bench_ceilings\", \"device\": \"" << device.properties().name
      << "\", \"read_bytes_per_s\": " << read << ", \"copy_bytes_per_s\": " << copy
      << ", \"mma_bf16_flops_per_s\": " << mma << "}\n";
  out.close();
  return out ? 0 : 1;
}

}  // namespace
}  // namespace fastllm::bench

int main(int argc, char** argv) {
  try {
    return fastllm::bench::run(argc == 3 && std::strcmp(argv[1], "--json") == 0 ? argv[2] : nullptr);
  } catch (const fastllm::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
