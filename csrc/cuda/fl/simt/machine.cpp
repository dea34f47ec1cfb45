#include "cuda/fl/simt/machine.h"

#include <algorithm>
#include <cstring>
#include <exception>
#include <memory>
#include <numeric>
#include <sstream>

#include "core/error.h"
#include "core/random.h"

namespace fl::simt {

constinit thread_local Lane* current __attribute__((tls_model("initial-exec"))) = nullptr;

namespace {

constexpr std::size_t kGuardBytes = 4096;
constexpr std::size_t kSharedAlignment = 1024;
constexpr unsigned char kPoison = 0xff;  // NaN in every float type, -1 in every integer
constexpr unsigned char kGuard = 0xfe;   // -1.7e38, NaN as f16: who reads it will be noticed

class Random {
 public:
  explicit Random(uint64_t seed) : seed_(seed) {}
  uint32_t below(uint32_t n) {
    const auto bits =
        fastllm::philox(seed_, {static_cast<uint32_t>(count_), static_cast<uint32_t>(count_ >> 32), 0, 0});
    ++count_;
    return static_cast<uint32_t>((uint64_t{bits[0]} * n) >> 32);
  }

 private:
  uint64_t seed_;
  uint64_t count_ = 0;
};

struct Stop {};  // unwinds the fiber that found an error

void run_lane();

// The barrier of the block. The lanes of a warp come to it from one place; warps may come from several.
struct Barrier {
  explicit Barrier(uint32_t num_threads) : sites((num_threads + 31) / 32) {}
  uint32_t arrived = 0;
  bool is_any_true = false;
  const char* what = nullptr;  // of those that came
  std::vector<Site> sites;     // of each warp; line 0: none of its lanes has come
  void reset() {
    arrived = 0;
    is_any_true = false;
    what = nullptr;
    std::ranges::fill(sites, Site{});
  }
};

}  // namespace

class Block {
 public:
  Block(const LaunchConfig& launch, const Options& opts, StackPool& stacks, const std::function<void()>& kernel)
      : config(launch), options(opts), body(kernel), random_(opts.seed), lanes_(launch.block), barrier_(launch.block) {
    const auto bytes = static_cast<std::size_t>(launch.smem_bytes);
    memory_.resize(bytes + 2 * kGuardBytes + kSharedAlignment);
    const auto address = reinterpret_cast<uintptr_t>(memory_.data()) + kGuardBytes;
    shared = memory_.data() + kGuardBytes + ((~address + 1) & (kSharedAlignment - 1));
    for (uint32_t i = 0; i < launch.block; ++i) {
      Lane& lane = lanes_[i];
      lane.thread_idx = {i, 0, 0};
      lane.thread = i;
      lane.lane = i % 32;
      lane.block = this;
      stack_tops_.push_back(stacks.top(i));
    }
  }

  void run(Dim3 index) {
    block_idx = index;
    std::memset(memory_.data(), kGuard, memory_.size());
    std::memset(shared, kPoison, static_cast<std::size_t>(config.smem_bytes));
    barrier_.reset();
    num_done_ = 0;
    ready_.clear();
    for (uint32_t i = 0; i < config.block; ++i) {
      Lane& lane = lanes_[options.order == Order::kReverse ? config.block - 1 - i : i];
      lane.state = LaneState::kReady;
      lane.what = "start";
      lane.site = {};
      lane.copies.clear();
      lane.group = 0;
      prepare(lane.context, stack_tops_[lane.thread], run_lane);
      ready_.push_back(&lane);
    }
    head_ = 0;
    while (num_done_ < config.block) {
      if (head_ == ready_.size()) {
        error_ = describe("deadlock");
        break;
      }
      current = next();
      switch_to(scheduler, current->context);
      current = nullptr;
      if (!error_.empty()) break;
    }
    if (error_.empty()) check_guards();
    if (!error_.empty()) fastllm::fail(fastllm::ErrorKind::kDevice, error_);
  }

  void wake(Lane& lane) {
    lane.state = LaneState::kReady;
    ready_.push_back(&lane);
  }
  void yield(Lane& lane) { switch_to(lane.context, scheduler); }
  void set_error(const std::string& message) { error_ = describe(message); }
  void set_plain_error(const std::string& message) { error_ = where() + message; }

  // A lane that ends must not be missed by others.
  void finish(Lane& lane) {
    lane.state = LaneState::kDone;
    ++num_done_;
    for_warp(lane, [&](Lane& other) {
      if (other.state == LaneState::kInWarpCollective && (other.mask >> lane.lane & 1u) != 0) {
        lane.what = "end";
        set_error("a lane ended that a warp collective waits for");
      }
    });
  }

  template <class F>
  void for_warp(const Lane& lane, F f) {
    const uint32_t first = lane.thread & ~31u;
    for (uint32_t i = first; i < std::min(first + 32, config.block); ++i) f(lanes_[i]);
  }
  Lane* find(uint32_t thread) { return thread < config.block ? &lanes_[thread] : nullptr; }

  // Whether any thread brought true.
  bool arrive(Lane& lane, bool predicate) {
    if (barrier_.what == nullptr) barrier_.what = lane.what;
    Site& site = barrier_.sites[lane.warp()];
    if (site.line == 0) site = lane.site;
    if (std::strcmp(barrier_.what, lane.what) != 0) {
      fail_kernel(std::string("threads meet in ") + barrier_.what + " and in " + lane.what);
    }
    if (!(site == lane.site))
      fail_kernel(std::string(lane.what) + ": lanes of a warp come to it from different places");
    ++barrier_.arrived;
    barrier_.is_any_true = barrier_.is_any_true || predicate;
    if (barrier_.arrived < config.block) {
      bool is_any_true = false;
      lane.out = &is_any_true;
      lane.state = LaneState::kAtBarrier;
      yield(lane);
      return is_any_true;
    }
    const bool is_any_true = barrier_.is_any_true;
    barrier_.reset();
    for (Lane& other : lanes_) {
      if (other.state != LaneState::kAtBarrier) continue;
      *static_cast<bool*>(other.out) = is_any_true;
      wake(other);
    }
    return is_any_true;
  }

  // With random turns the last one to come does not always go on first.
  void maybe_preempt(Lane& lane) {
    if (options.order != Order::kShuffled || random_.below(2) == 0) return;
    ready_.push_back(&lane);
    yield(lane);
  }

  const LaunchConfig& config;
  const Options& options;
  const std::function<void()>& body;
  Dim3 block_idx;
  Context scheduler;
  std::byte* shared = nullptr;

 private:
  Lane* next() {
    if (options.order == Order::kShuffled) {
      const auto left = static_cast<uint32_t>(ready_.size() - head_);
      std::swap(ready_[head_], ready_[head_ + random_.below(left)]);
    }
    Lane* lane = ready_[head_++];
    if (head_ > 4096 && head_ * 2 > ready_.size()) {
      ready_.erase(ready_.begin(), ready_.begin() + static_cast<std::ptrdiff_t>(head_));
      head_ = 0;
    }
    return lane;
  }

  void check_guards() {
    const auto bad = [](const std::byte* begin, const std::byte* end) {
      return std::find_if(begin, end, [](std::byte b) { return b != std::byte{kGuard}; });
    };
    const std::byte* after = shared + config.smem_bytes;
    if (const auto* at = bad(memory_.data(), shared); at != shared) {
      set_plain_error("wrote " + std::to_string(shared - at) + " bytes before its shared memory");
    } else if (const auto* end = memory_.data() + memory_.size(); bad(after, end) != end) {
      set_plain_error("wrote at offset " + std::to_string(bad(after, end) - shared) + " of " +
                      std::to_string(config.smem_bytes) + " bytes of shared memory");
    }
  }

  [[nodiscard]] std::string where() const {
    std::ostringstream text;
    text << "kernel " << config.name << ", block (" << block_idx.x << ", " << block_idx.y << ", " << block_idx.z
         << "): ";
    return text.str();
  }

  // The message and where the lanes stand, neighbours that stand alike in one line.
  [[nodiscard]] std::string describe(const std::string& message) const {
    std::ostringstream text;
    text << where() << message;
    for (uint32_t begin = 0; begin < config.block;) {
      const auto line_of = [](const Lane& lane) {
        std::ostringstream line;
        const char* file = std::strrchr(lane.site.file, '/');
        const auto place = [&] { line << (file != nullptr ? file + 1 : lane.site.file) << ":" << lane.site.line; };
        switch (lane.state) {
          case LaneState::kDone:
            line << "ended";
            break;
          case LaneState::kReady:
            line << "can run, last seen in " << lane.what << " at ";
            place();
            break;
          case LaneState::kInWarpCollective:
            line << "waits in " << lane.what << " with mask 0x" << std::hex << lane.mask << std::dec << " at ";
            place();
            break;
          case LaneState::kAtBarrier:
            line << "waits in " << lane.what << " at ";
            place();
            break;
        }
        return line.str();
      };
      const std::string line = line_of(lanes_[begin]);
      uint32_t end = begin + 1;
      while (end < config.block && line_of(lanes_[end]) == line) ++end;
      text << "\n  threads " << begin << "-" << end - 1 << ": " << line;
      begin = end;
    }
    return text.str();
  }

  Random random_;
  std::vector<Lane> lanes_;
  std::vector<std::byte*> stack_tops_;
  std::vector<std::byte> memory_;
  std::vector<Lane*> ready_;
  std::size_t head_ = 0;
  Barrier barrier_;
  uint32_t num_done_ = 0;
  std::string error_;
};

namespace {

void run_lane() {
  Lane& lane = *current;
  arrived_first(lane.block->scheduler);
  try {
    lane.block->body();
    lane.block->finish(lane);
  } catch (const Stop&) {  // the error is set
  } catch (const std::exception& e) {
    lane.block->set_error(std::string("exception: ") + e.what());
  }
  lane.block->yield(lane);  // for good
  std::terminate();
}

}  // namespace

void run_grid(const LaunchConfig& config, const Options& options, StackPool& stacks,
              const std::function<void()>& body) {
  Block block(config, options, stacks, body);
  std::vector<uint64_t> order(config.grid.count());
  std::iota(order.begin(), order.end(), uint64_t{0});
  if (options.order == Order::kReverse) std::reverse(order.begin(), order.end());
  if (options.order == Order::kShuffled) {
    Random random(~options.seed);
    for (std::size_t i = order.size(); i > 1; --i)
      std::swap(order[i - 1], order[random.below(static_cast<uint32_t>(i))]);
  }
  for (const uint64_t i : order) {
    const auto rest = static_cast<uint32_t>(i / config.grid.x);
    block.run({static_cast<uint32_t>(i % config.grid.x), rest % config.grid.y, rest / config.grid.y});
  }
}

void fail_kernel(const std::string& message) {
  current->block->set_error(message);
  throw Stop{};
}

bool arrive_warp(const char* what, uint32_t mask, const void* in, void* out, Site site, From from) {
  Lane& lane = *current;
  Block& block = *lane.block;
  lane.what = what;
  lane.site = site;
  lane.mask = mask;
  lane.in = in;
  lane.out = out;
  if ((mask >> lane.lane & 1u) == 0) fail_kernel(std::string(what) + ": the calling lane is not in its own mask");
  uint32_t present = 1u << lane.lane;
  uint32_t existing = 0;
  block.for_warp(lane, [&](Lane& other) {
    existing |= 1u << other.lane;
    if (&other == &lane || (mask >> other.lane & 1u) == 0) return;
    if (other.state == LaneState::kDone) fail_kernel(std::string(what) + ": a lane of the mask has ended");
    if (other.state != LaneState::kInWarpCollective) return;
    if (other.mask != mask || std::strcmp(other.what, what) != 0) {
      fail_kernel(std::string(what) + ": lanes of one mask meet in different collectives");
    }
    if (from == From::kOnePlace && !(other.site == site)) {
      fail_kernel(std::string(what) + ": lanes of a warp come to it from different places");
    }
    present |= 1u << other.lane;
  });
  if ((mask & ~existing) != 0) fail_kernel(std::string(what) + ": the mask names lanes that the block does not have");
  if (present == mask) return true;
  lane.state = LaneState::kInWarpCollective;
  block.yield(lane);
  return false;
}

void release_warp(uint32_t mask) {
  Lane& lane = *current;
  lane.block->for_warp(lane, [&](Lane& other) {
    if (&other != &lane && (mask >> other.lane & 1u) != 0) lane.block->wake(other);
  });
  lane.block->maybe_preempt(lane);
}

Lane& peer(uint32_t lane) { return *current->block->find((current->thread & ~31u) + lane); }

bool arrive_barrier(const char* what, bool predicate, Site site) {
  Lane& lane = *current;
  lane.what = what;
  lane.site = site;
  const bool is_any_true = lane.block->arrive(lane, predicate);
  lane.block->maybe_preempt(lane);
  return is_any_true;
}

Dim3 block_idx() { return current->block->block_idx; }
Dim3 block_dim() { return {current->block->config.block, 1, 1}; }
Dim3 grid_dim() { return current->block->config.grid; }
const Options& options() { return current->block->options; }
std::byte* shared_memory() { return current->block->shared; }
std::size_t shared_bytes() { return static_cast<std::size_t>(current->block->config.smem_bytes); }

uint32_t shared_address(const void* pointer, Site site) {
  const auto offset = static_cast<const std::byte*>(pointer) - shared_memory();
  if (offset < 0 || offset > static_cast<std::ptrdiff_t>(shared_bytes())) {
    current->what = "smem_addr";
    current->site = site;
    fail_kernel("smem_addr: the pointer is not in the block's shared memory");
  }
  return kSharedBase + static_cast<uint32_t>(offset);
}

void* shared_pointer(uint32_t address, int bytes, Site site) {
  const uint64_t offset = uint64_t{address} - kSharedBase;
  const bool is_inside = address >= kSharedBase && offset + static_cast<uint64_t>(bytes) <= shared_bytes();
  if (!is_inside || address % static_cast<uint32_t>(bytes) != 0) {
    current->what = "shared access";
    current->site = site;
    fail_kernel("access of " + std::to_string(bytes) + " bytes at offset " +
                std::to_string(static_cast<int64_t>(offset)) + " of " + std::to_string(shared_bytes()) +
                " bytes of shared memory: " + (is_inside ? "not aligned" : "outside"));
  }
  return shared_memory() + offset;
}

}  // namespace fl::simt
