// The emulated multiprocessor: runs the blocks of a grid one after another, the threads of a block as fibers.
//
// A lane runs until it meets a collective that others have not reached, or ends. Lanes are not in lock step: code that
// forgets a barrier sees stale data, as it may on hardware. The order in which lanes and blocks get their turn is an
// option. Whatever goes wrong inside a kernel ends the launch with an Error that says where each lane stands.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "cuda/fl/launch_config.h"
#include "cuda/fl/simt/fiber.h"
#include "cuda/fl/simt/options.h"

namespace fl::simt {

class Block;

struct Site {
  const char* file = "";
  int line = 0;
  bool operator==(const Site& other) const { return line == other.line && std::strcmp(file, other.file) == 0; }
};

struct PendingCopy {
  void* to;
  const void* from;
  int bytes;
  int source_bytes;
  uint32_t group;
};

enum class LaneState : uint8_t { kReady, kInWarpCollective, kAtBarrier, kDone };

struct Lane {
  Dim3 thread_idx;
  uint32_t thread = 0;  // linear index in the block
  uint32_t lane = 0;    // in its warp
  Block* block = nullptr;
  Context context;
  LaneState state = LaneState::kReady;
  // The collective in which it waits, or the last one it passed.
  const char* what = "start";
  Site site;
  uint32_t mask = 0;  // of a warp collective
  const void* in = nullptr;
  void* out = nullptr;
  // Asynchronous copies that were issued and not done, oldest first, and how many groups were committed.
  std::vector<PendingCopy> copies;
  uint32_t group = 0;

  [[nodiscard]] uint32_t warp() const { return thread / 32; }
};

// The lane that runs. Fibers never change their OS thread.
extern constinit thread_local Lane* current __attribute__((tls_model("initial-exec")));

// All blocks of one launch. Throws Error(kDevice) for whatever a kernel did wrong.
void run_grid(const LaunchConfig& config, const Options& options, StackPool& stacks, const std::function<void()>& body);

// --- For the functions of fl/simt/*.h, called on a fiber. ---

// Ends the launch with this message, followed by where every lane of the block stands.
[[noreturn]] void fail_kernel(const std::string& message);
// Where the lanes of a collective may come from: those that PTX calls .aligned want all at the same instruction.
enum class From : uint8_t { kAnywhere, kOnePlace };
// Joins the collective `what` of the lanes in `mask`. True: this lane came last and must combine, then release_warp();
// false: it was combined meanwhile.
bool arrive_warp(const char* what, uint32_t mask, const void* in, void* out, Site site, From from);
void release_warp(uint32_t mask);
Lane& peer(uint32_t lane);  // of the same warp

// The barrier of the whole block. Whether any thread brought true.
bool arrive_barrier(const char* what, bool predicate, Site site);

Dim3 block_idx();
Dim3 block_dim();
Dim3 grid_dim();
const Options& options();
std::byte* shared_memory();
std::size_t shared_bytes();
constexpr uint32_t kSharedBase = 0x400;  // so that 0 is no shared address
uint32_t shared_address(const void* pointer, Site site);
// The bytes at a shared address, checked to lie within the block's memory and to be aligned.
void* shared_pointer(uint32_t address, int bytes, Site site);

}  // namespace fl::simt
