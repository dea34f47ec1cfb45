// Checked arithmetic, known answers of the random numbers, buffers and arenas.
#include <array>
#include <cstdint>
#include <limits>
#include <utility>

#include "core/buffer.h"
#include "core/checked.h"
#include "core/random.h"
#include "harness.h"

namespace fastllm::test {
namespace {

constexpr int64_t kMax = std::numeric_limits<int64_t>::max();
constexpr int64_t kMin = std::numeric_limits<int64_t>::min();

bool mul_throws(int64_t a, int64_t b) {
  try {
    static_cast<void>(checked_mul(a, b));
    return false;
  } catch (const Error&) {
    return true;
  }
}
bool add_throws(int64_t a, int64_t b) {
  try {
    static_cast<void>(checked_add(a, b));
    return false;
  } catch (const Error&) {
    return true;
  }
}
__extension__ using Wide = __int128;
bool fits(Wide x) { return x >= kMin && x <= kMax; }

// Every pair out of the values around which arithmetic breaks, against arithmetic of twice the width.
NATIVE_TEST(checked_arithmetic_agrees_with_128_bits) {
  const std::array<int64_t, 17> values = {kMin,
                                          kMin + 1,
                                          -(int64_t{1} << 32),
                                          -(int64_t{1} << 31) - 1,
                                          -3,
                                          -1,
                                          0,
                                          1,
                                          2,
                                          3,
                                          (int64_t{1} << 31) - 1,
                                          int64_t{1} << 31,
                                          int64_t{3037000499},  // floor(sqrt(2^63))
                                          int64_t{3037000500},
                                          int64_t{1} << 62,
                                          kMax - 1,
                                          kMax};
  for (const int64_t a : values) {
    for (const int64_t b : values) {
      const std::string name = std::to_string(a) + ", " + std::to_string(b);
      const Wide product = Wide{a} * b;
      const Wide sum = Wide{a} + b;
      require_equal(mul_throws(a, b), !fits(product), "checked_mul(" + name + ") throws");
      require_equal(add_throws(a, b), !fits(sum), "checked_add(" + name + ") throws");
      if (fits(product)) require_equal(checked_mul(a, b), static_cast<int64_t>(product), "checked_mul(" + name + ")");
      if (fits(sum)) require_equal(checked_add(a, b), static_cast<int64_t>(sum), "checked_add(" + name + ")");
    }
  }
}

template <class To, class From>
void narrows(From x, bool is_inside) {
  try {
    const To narrowed = narrow<To>(x, "x");
    require(is_inside && std::cmp_equal(narrowed, x), "narrow(" + std::to_string(x) + ") gave a number");
  } catch (const Error& e) {
    require(!is_inside, e.what());
    require(std::string(e.what()).find(std::to_string(x)) != std::string::npos, "the value is not in the message");
  }
}

NATIVE_TEST(narrow_refuses_what_does_not_fit) {
  narrows<int32_t>(int64_t{INT32_MAX}, true);
  narrows<int32_t>(int64_t{INT32_MAX} + 1, false);
  narrows<int32_t>(int64_t{INT32_MIN}, true);
  narrows<int32_t>(int64_t{INT32_MIN} - 1, false);
  narrows<uint32_t>(int64_t{-1}, false);
  narrows<uint32_t>(int64_t{UINT32_MAX}, true);
  narrows<uint64_t>(kMin, false);
  narrows<int64_t>(std::numeric_limits<uint64_t>::max(), false);
  narrows<int64_t>(static_cast<uint64_t>(kMax), true);
  narrows<uint8_t>(256, false);
}

NATIVE_TEST(rounding_up) {
  require_equal(ceil_div(0, 16), 0, "ceil_div(0, 16)");
  require_equal(ceil_div(1, 16), 1, "ceil_div(1, 16)");
  require_equal(ceil_div(16, 16), 1, "ceil_div(16, 16)");
  require_equal(ceil_div(17, 16), 2, "ceil_div(17, 16)");
  require_equal(round_up(17, 16), 32, "round_up(17, 16)");
}

// The known answers that the authors of Philox publish with Random123 (kat_vectors, philox4x32-10).
NATIVE_TEST(philox_known_answers) {
  using Block = std::array<uint32_t, 4>;
  require(philox(0, {0, 0, 0, 0}) == Block{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}, "zeros");
  require(philox(0xffffffffffffffffu, {0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}) ==
              Block{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
          "ones");
  require(philox(0x299f31d0a4093822u, {0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}) ==
              Block{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1},
          "digits of pi");
}

NATIVE_TEST(uniform_is_uniform_and_keyed) {
  constexpr int kDraws = 200000;
  std::array<int, 16> bins{};
  for (int i = 0; i < kDraws; ++i) {
    const double u = uniform(7, 1, static_cast<uint64_t>(i));
    require(u >= 0.0 && u < 1.0, "outside [0, 1)");
    ++bins[static_cast<std::size_t>(u * 16)];
  }
  double chi_square = 0.0;
  constexpr double kExpected = kDraws / 16.0;
  for (const int count : bins) chi_square += (count - kExpected) * (count - kExpected) / kExpected;
  require(chi_square < 37.7, "chi-square with 15 degrees of freedom above its 99.9 % point");
  const double u = uniform(7, 1, 3);
  require(u != uniform(8, 1, 3) && u != uniform(7, 2, 3) && u != uniform(7, 1, 4), "a part of the key is ignored");
  require(u != uniform(7 + (uint64_t{1} << 32), 1, 3) && u != uniform(7, 1 + (uint64_t{1} << 32), 3) &&
              u != uniform(7, 1, 3 + (uint64_t{1} << 32)),
          "the upper half of a part of the key is ignored");
}

NATIVE_TEST(buffers_are_zero_aligned_and_refuse_nonsense) {
  for (const int64_t bytes : {int64_t{0}, int64_t{1}, int64_t{4096}, int64_t{4097}, int64_t{5} << 20}) {
    const Buffer buffer(bytes, "test");
    require_equal(buffer.size(), bytes, "size");
    if (bytes == 0) continue;
    const auto address = reinterpret_cast<uintptr_t>(buffer.data());
    require_equal(address % (bytes >= (2 << 20) ? 2 << 20 : 4096), uintptr_t{0}, "alignment");
    buffer.data()[0] = std::byte{1};
    buffer.data()[bytes - 1] = std::byte{1};
    require(bytes < 3 || buffer.data()[bytes / 2] == std::byte{0}, "not zero");
  }
  require_error(ErrorKind::kInternal, [] { const Buffer buffer(-1, "test"); }, "a negative size");
  require_error(ErrorKind::kOutOfMemory, [] { const Buffer buffer(int64_t{1} << 60, "test"); }, "an exabyte");
  require_error(ErrorKind::kInvalidRequest, [] { const Buffer buffer(kMax - 4096, "test"); }, "nearly 2^63 bytes");
  Buffer a(100, "a");
  std::byte* const data = a.data();
  Buffer b(std::move(a));
  require(b.data() == data && b.size() == 100, "moved");
}

NATIVE_TEST(a_plan_places_what_it_counted) {
  const auto take = [](Arena& arena) {
    arena.take<float>(3);
    arena.take<std::byte>(65);
    arena.take<int64_t>(0);
    return arena.take<double>(1);
  };
  Arena plan;
  require(take(plan) == nullptr, "a plan has no memory");
  require_equal(plan.used(), 64 + 128 + 64, "planned bytes");
  const Buffer buffer(plan.used(), "arena");
  Arena arena({buffer.data(), static_cast<std::size_t>(buffer.size())});
  require_equal(reinterpret_cast<uintptr_t>(take(arena)) % 64, uintptr_t{0}, "alignment");
  require_equal(arena.used(), plan.used(), "used bytes");
  require_error(ErrorKind::kInternal, [&] { arena.take<std::byte>(1); }, "an arena that is used up");
  require_error(ErrorKind::kInvalidRequest, [&] { plan.take<int64_t>(kMax / 4); }, "a product that overflows");
}

}  // namespace
}  // namespace fastllm::test
