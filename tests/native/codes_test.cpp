// Packing integer weights: slices of disjoint rows, in any order and from several threads, give the bytes of packing
// all rows at once. (Rows 1 and 17 of a panel of int4 share bytes.)
#include <cstring>
#include <vector>

#include "core/buffer.h"
#include "core/thread_pool.h"
#include "cpu/cpu_backend.h"
#include "harness.h"

namespace fastllm::test {
namespace {

struct Source {
  WeightDesc desc;
  std::vector<uint8_t> codes, zeros;
  std::vector<float> scales;

  Source(std::mt19937_64& random, const WeightDesc& of) : desc(of) {
    codes.resize(static_cast<std::size_t>(desc.n * desc.k));
    scales.resize(static_cast<std::size_t>(desc.n * desc.groups()));
    zeros.resize(scales.size());
    for (uint8_t& code : codes) code = static_cast<uint8_t>(random() % (desc.format == WeightFormat::kInt4 ? 16 : 256));
    for (float& scale : scales) scale = static_cast<float>(random() % 1024);
    for (uint8_t& zero : zeros) zero = static_cast<uint8_t>(random() % 17);
  }
  [[nodiscard]] CodeSlice rows(int64_t begin, int64_t end) const {
    const int64_t groups = desc.groups();
    return {codes.data() + begin * desc.k,
            scales.data() + begin * groups,
            desc.has_zeros ? zeros.data() + begin * groups : nullptr,
            begin,
            end - begin,
            0};
  }
};

NATIVE_TEST(slices_of_disjoint_rows_are_packed_concurrently) {
  std::mt19937_64 random(options().seed);
  const auto backend = make_cpu_backend(1, CpuIsa::kScalar);
  ThreadPool pool(3);
  for (const WeightFormat format : {WeightFormat::kInt4, WeightFormat::kInt8}) {
    for (const int64_t group : {int64_t{0}, int64_t{32}, int64_t{128}}) {
      WeightDesc desc;
      desc.n = 75;
      desc.k = 133;
      desc.format = format;
      desc.group = group;
      desc.scale_dtype = group == 0 ? DType::kF32 : DType::kF16;
      desc.has_zeros = group != 32;
      const Source source(random, desc);
      const int64_t bytes = backend->packed_bytes(desc);
      const Buffer whole(bytes, "whole");
      backend->pack_codes({desc, whole.data()}, source.rows(0, desc.n));
      for (const int64_t rows_of_slice : {1, 2, 5, 16, 17, 32, 33}) {
        const Buffer parts(bytes, "parts");
        const int64_t num_slices = (desc.n + rows_of_slice - 1) / rows_of_slice;
        pool.parallel_for(num_slices, 1, [&](int64_t slice, int64_t, int) {
          const int64_t begin = slice * rows_of_slice;
          backend->pack_codes({desc, parts.data()}, source.rows(begin, std::min(desc.n, begin + rows_of_slice)));
        });
        require(std::memcmp(parts.data(), whole.data(), static_cast<std::size_t>(bytes)) == 0,
                std::string(name_of(format)) + " in slices of " + std::to_string(rows_of_slice) + " rows");
      }
    }
  }
}

}  // namespace
}  // namespace fastllm::test
