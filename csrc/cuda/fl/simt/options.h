// How the emulator runs kernels. Results must not depend on any of it; tests try several.
#pragma once

#include <cstdint>

namespace fl::simt {

enum class Order : uint8_t {
  kForward,
  kReverse,
  kShuffled,  // random turns of lanes, with pre-emption at collectives, and random order of blocks
};
enum class AsyncCopies : uint8_t {
  kAtIssue,  // shows a stage that is overwritten while others still read it
  kAtWait,   // shows a missing or too weak wait: the bytes are not there yet
};

enum class Streams : uint8_t {
  kAtOnce,  // errors are those of the call that made them
  kAtWait,  // shows host memory that is changed, or read, before a stream has come past its copy
};

struct Options {
  Order order = Order::kForward;
  AsyncCopies async_copies = AsyncCopies::kAtWait;
  uint64_t seed = 0;  // of kShuffled
  Streams streams = Streams::kAtOnce;
};

}  // namespace fl::simt
