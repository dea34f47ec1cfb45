// Faults inside: the N-th allocation, kernel launch, pool item or queue hand-over fails while a real (tiny) model is
// made, serves a mixed load for 64 steps and more, and is closed. For every N: construction throws and leaves nothing
// behind, or it succeeds and
//   - no step throws, and scheduler, pages and prefix index agree after each;
//   - every accepted sequence ends once: as without the fault, or with an error that names the cause and with tokens
//     that are a beginning of those without the fault;
//   - pages return to 0, and a request that is sent afterwards gives the same tokens as ever;
//   - what was allocated is given back.
// --stride N tries every N-th point (sanitizers).
#include "core/fault.h"

#include <algorithm>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "cpu/cpu_backend.h"
#include "engine/core.h"
#include "engine/request.h"
#include "failing_new.h"
#include "harness.h"
#include "reference/reference_backend.h"
#include "tiny_model.h"

namespace fastllm::test {
namespace {

using fault::Point;
using MakeBackend = std::function<std::unique_ptr<Backend>()>;

struct Output {
  std::vector<int32_t> tokens;
  std::string text;
  FinishReason reason = FinishReason::kNone;
  ErrorKind kind = ErrorKind::kInternal;
  std::string message;
};
using Outputs = std::map<std::pair<int64_t, int32_t>, Output>;

struct Outcome {
  bool was_made = false;
  bool lost_results = false;  // the channel said so
  Outputs outputs;
  std::vector<int64_t> accepted;
  std::map<int64_t, int64_t> num_sequences;
  int64_t num_failed_steps = 0;
  int64_t num_preemptions = 0;
  int64_t num_passes = 0;
};

constexpr int64_t kNumRequests = 10;
constexpr int64_t kNumSteps = 64;
constexpr int64_t kMaxSeqs = 4;   // of tiny_config()
constexpr int64_t kProbe = 1000;  // id of the request that is sent afterwards

Submission submission_of(int64_t i) {
  Submission s;
  for (int64_t j = 0; j < 3 + (i * 5) % 17; ++j) s.prompt_token_ids.push_back((j * (i % 3 + 1)) % 20);
  SamplingParams& p = s.params;
  p.max_tokens = 6 + i % 5;
  p.seed = i;
  p.temperature = i % 2 == 0 ? 0.0 : 1.0;
  if (i % 4 == 1) p.n = 3;
  if (i % 3 == 0) p.logprobs = 4;
  if (i % 5 == 2) p.prompt_logprobs = 2;
  if (i % 4 == 2) p.presence_penalty = 0.5;
  if (i % 4 == 3) p.bad_words = {{3, 4}, {5}};
  if (i % 3 == 1) p.stop = {"zz", "qb"};
  if (i % 3 == 2) p.min_tokens = 3;
  s.cache_salt = i % 5 == 4 ? "another tenant of this engine" : "";
  s.priority = i % 7 == 6 ? -1 : 0;
  return s;
}

Submission prepare(int64_t i) {
  const NoFaults scope;
  return submission_of(i);
}

void collect(Channel& channel, Outcome& outcome) {
  std::vector<RequestDelta> deltas;
  try {
    deltas = channel.poll(0.0);
  } catch (const Error& e) {
    require(e.kind() == ErrorKind::kOutOfMemory, "poll() threw another error");
    outcome.lost_results = true;
  }
  for (RequestDelta& d : deltas) {
    Output& out = outcome.outputs[{d.request_id, d.index}];
    require(out.reason == FinishReason::kNone, "a delta came after the end");
    out.tokens.insert(out.tokens.end(), d.token_ids.begin(), d.token_ids.end());
    out.text += d.text;
    out.reason = d.finish_reason;
    out.kind = d.error_kind;
    out.message = d.error_message;
  }
}

void submit(EngineCore& core, const EngineConfig& config, const std::shared_ptr<Channel>& channel, int64_t id,
            Submission submission, Outcome& outcome) {
  const int64_t n = submission.params.n;
  try {
    core.add(make_request(config, std::move(submission), channel, id));
  } catch (const std::exception&) {
    return;  // refused: the caller has the exception, the engine has nothing
  }
  const NoFaults scope;
  outcome.accepted.push_back(id);
  outcome.num_sequences[id] = n;
}

// The load, with passes nth .. nth + count - 1 of the point failing; nth = 0: none.
Outcome run_load(const MakeBackend& make_backend, Point point, int64_t nth, int64_t count) {
  Outcome outcome;
  fault::arm(point, nth, count);
  std::unique_ptr<EngineCore> core;
  EngineConfig config;
  std::shared_ptr<Channel> channel;
  try {
    channel = std::make_shared<Channel>();
    auto executor = make_tiny_executor(make_backend(), config);
    core = std::make_unique<EngineCore>(config, std::move(executor));
  } catch (const std::exception&) {
    outcome.num_passes = fault::passes(point);
    fault::arm(point, 0);
    return outcome;
  }
  outcome.was_made = true;
  for (int64_t step = 0; step < kNumSteps; ++step) {
    if (step % 3 == 0 && step / 3 < kNumRequests) {
      submit(*core, config, channel, step / 3 + 1, prepare(step / 3), outcome);
    }
    if (step == 11) core->abort(3);
    core->step();
    const NoFaults scope;
    core->check_integrity();
    if (step % 4 == 0) collect(*channel, outcome);
  }
  outcome.num_passes = fault::passes(point);
  fault::arm(point, 0);
  for (int i = 0; core->step(); ++i) require(i < 1000, "the engine does not come to an end");
  collect(*channel, outcome);
  submit(*core, config, channel, kProbe, submission_of(5), outcome);
  while (core->step()) {
  }
  collect(*channel, outcome);
  core->check_integrity();
  const EngineStats stats = core->stats();
  require(stats.num_pages_referenced == 0 && stats.num_running == 0 && stats.num_waiting == 0, "something was left");
  outcome.num_failed_steps = stats.num_failed_steps;
  outcome.num_preemptions = stats.num_preemptions;
  return outcome;
}

bool is_beginning(const std::vector<int32_t>& part, const std::vector<int32_t>& whole) {
  return part.size() <= whole.size() && std::equal(part.begin(), part.end(), whole.begin());
}

// Returns how many sequences failed.
int64_t compare(const Outcome& got, const Outcome& want) {
  int64_t num_failed = 0;
  for (const int64_t id : got.accepted) {
    for (int32_t index = 0; index < got.num_sequences.at(id); ++index) {
      const std::string name = "sequence " + std::to_string(id) + "." + std::to_string(index);
      const auto found = got.outputs.find({id, index});
      const bool has_ended = found != got.outputs.end() && found->second.reason != FinishReason::kNone;
      require(has_ended || got.lost_results, name + " never ended");
      if (!has_ended) continue;
      const Output& out = found->second;
      const Output& expected = want.outputs.at({id, index});
      if (out.reason == FinishReason::kError) {
        ++num_failed;
        require(!out.message.empty(), name + " failed without a cause");
        require(is_beginning(out.tokens, expected.tokens), name + " failed and has other tokens");
      } else if (out.reason != FinishReason::kAbort) {
        // Under a fault the abort may find it finished, never the other way round.
        require(expected.reason == FinishReason::kAbort ||
                    (out.tokens == expected.tokens && out.text == expected.text && out.reason == expected.reason),
                name + " ended in another way than without the fault");
      }
    }
  }
  require(!got.was_made || got.outputs.at({kProbe, 0}).reason == FinishReason::kLength ||
              got.outputs.at({kProbe, 0}).reason == FinishReason::kStop,
          "the engine is of no use afterwards");
  return num_failed;
}

struct Sweep {
  int64_t num_points = 0, num_refused = 0, num_unharmed = 0, num_failed_sequences = 0, num_lost = 0;
};

Sweep sweep(const MakeBackend& make_backend, Point point, int64_t count, int64_t stride,
            const std::function<void(const Outcome&)>& check_outcome = {}) {
  const Outcome want = run_load(make_backend, point, 0, 1);
  require(compare(want, want) == 0 && want.num_preemptions > 0, "the load itself fails, or does not preempt");
  Sweep total;
  for (int64_t nth = 1; nth <= want.num_passes; nth += stride) {
    const int64_t live_before = num_live_allocations();
    try {
      const Outcome got = run_load(make_backend, point, nth, count);
      const int64_t num_failed = got.was_made ? compare(got, want) : 0;
      if (check_outcome) check_outcome(got);
      ++total.num_points;
      total.num_refused += got.was_made ? 0 : 1;
      total.num_unharmed += got.was_made && num_failed == 0 && !got.lost_results ? 1 : 0;
      total.num_failed_sequences += num_failed;
      total.num_lost += got.lost_results ? 1 : 0;
    } catch (const std::exception& e) {
      fault::arm(point, 0);
      throw std::runtime_error("pass " + std::to_string(nth) + " of " + std::to_string(want.num_passes) + ": " +
                               e.what());
    }
    const int64_t live_after = num_live_allocations();
    require_equal(live_after, live_before, "live allocations after pass " + std::to_string(nth));
  }
  std::cout << "  " << total.num_points << " of " << want.num_passes << " points: " << total.num_refused
            << " refused to start, " << total.num_unharmed << " without harm, " << total.num_failed_sequences
            << " sequences failed, " << total.num_lost << " lost results and said so\n";
  return total;
}

std::unique_ptr<Backend> reference() { return make_reference_backend(); }
std::unique_ptr<Backend> threaded() { return make_cpu_backend(3, choose_isa(nullptr)); }

NATIVE_TEST(each_allocation_fails_once) {
  const Sweep total = sweep(reference, Point::kAlloc, 1, options().stride);
  require(total.num_refused > 0 && total.num_failed_sequences > 0, "the faults hit nothing");
}

// Memory that stays short: the error about the first failure cannot be stored either.
NATIVE_TEST(several_allocations_fail_in_a_row) {
  for (const int64_t count : {2, 3, 5, 20}) sweep(reference, Point::kAlloc, count, 7 * options().stride);
}

NATIVE_TEST(each_allocation_fails_on_the_cpu_backend) { sweep(threaded, Point::kAlloc, 1, 2 * options().stride); }

void check_kernel_fault(const Outcome& got) {
  require(got.was_made, "there is no kernel in construction");
  require_equal(got.num_failed_steps, 1, "failed steps");
  int64_t num_errors = 0;
  for (const auto& [name, out] : got.outputs) {
    if (out.reason != FinishReason::kError) continue;
    ++num_errors;
    require(out.kind == ErrorKind::kDevice && out.message.ends_with(": injected fault"), "cause: " + out.message);
  }
  // And the children of a request that was to be forked in this step.
  require(num_errors > 0 && num_errors <= kMaxSeqs + 2, "not one step's sequences failed");
}

NATIVE_TEST(each_kernel_launch_fails) { sweep(reference, Point::kKernel, 1, options().stride, check_kernel_fault); }

NATIVE_TEST(each_item_of_the_thread_pool_fails) {
  sweep(threaded, Point::kKernel, 1, 3 * options().stride, check_kernel_fault);
}

NATIVE_TEST(each_hand_over_fails) {
  sweep(reference, Point::kQueue, 1, options().stride, [](const Outcome& got) {
    require(got.was_made && got.num_failed_steps == 0, "a step failed for its output");
    int64_t num_errors = 0;
    for (const auto& [name, out] : got.outputs) {
      if (out.reason != FinishReason::kError) continue;
      ++num_errors;
      require_equal(out.message, "output queue: injected fault", "cause");
    }
    require(num_errors <= 3, "others than the sequence itself, and the children that wait for it, failed");
  });
}

// The last word of a sequence and the error about it both fail: the channel itself has to say so.
NATIVE_TEST(hand_overs_fail_in_a_row) {
  const Sweep total = sweep(reference, Point::kQueue, 4, options().stride);
  require(total.num_lost > 0, "no result was ever lost");
}

NATIVE_TEST(each_tensor_fails_to_be_read) {
  const auto model = std::make_shared<Model>(tiny_spec(), reference(), WeightPlan{WeightFormat::kF32, {}});
  model->allocate_weights();
  const std::vector<float> zeros(1000, 0.0f);
  fault::arm(Point::kIo, 1, 1000);
  for (const auto& [name, slot] : model->weights->matrices()) {
    const WeightDesc& d = slot.weight.desc;
    const WeightSlice slice{zeros.data(), DType::kF32, d.k, 1, 0, d.n, 0};
    const std::string text =
        require_error(ErrorKind::kCheckpoint, [&] { model->weights->fill_matrix(name, slice, d.k); }, name);
    require_equal(text, name + ": injected fault", "message");
  }
  for (const auto& [name, slot] : model->weights->vectors()) {
    const WeightSlice slice{zeros.data(), DType::kF32, 0, 1, 0, 1, 0};
    require_error(ErrorKind::kCheckpoint, [&] { model->weights->fill_vector(name, slice, 0, slot.size); }, name);
  }
  fault::arm(Point::kIo, 0);
}

// With its thread: whoever hits the fault, construction and submission throw at the caller, requests end, close() ends.
void run_engine(Point point, int64_t nth, int64_t count, const std::vector<int32_t>& expected) {
  std::vector<int32_t> tokens;
  tokens.reserve(1000);
  fault::arm(point, nth, count);
  std::unique_ptr<Engine> engine;
  std::shared_ptr<Channel> channel;
  int64_t num_open = 0;
  try {
    EngineConfig config;
    auto executor = make_tiny_executor(threaded(), config);
    engine = std::make_unique<Engine>(config, std::move(executor));
    channel = engine->open_channel();
  } catch (const std::exception&) {
    fault::arm(point, 0);
    return;
  }
  for (int64_t i = 0; i < 3; ++i) {
    try {
      const int64_t n = i % 4 == 1 ? 3 : 1;
      engine->submit(prepare(i), channel);
      num_open += n;
    } catch (const std::exception&) {
    }
  }
  bool is_lossy = false;
  const auto read = [&] {
    const NoFaults scope;
    try {
      for (const RequestDelta& d : channel->poll(0.2)) {
        tokens.insert(tokens.end(), d.token_ids.begin(), d.token_ids.end());
        num_open -= d.finish_reason == FinishReason::kNone ? 0 : 1;
      }
    } catch (const Error&) {
      is_lossy = true;
    }
  };
  for (int i = 0; num_open > 0 && !is_lossy && !channel->is_closed(); ++i) {
    if (i == 50) fault::arm(point, 0);
    require(i < 50, "requests do not end");
    read();
  }
  fault::arm(point, 0);
  require(!channel->is_closed(), "the engine ended");
  tokens.clear();
  if (!is_lossy) {
    num_open = 1;
    engine->submit(submission_of(4), channel);
    for (int i = 0; num_open > 0; ++i) {
      require(i < 50, "the engine is of no use afterwards");
      read();
    }
    require(expected.empty() || tokens == expected, "other tokens afterwards");
  }
  engine->close();
}

std::vector<int32_t> expected_tokens() {
  EngineConfig config;
  auto executor = make_tiny_executor(threaded(), config);
  EngineCore core(config, std::move(executor));
  const auto channel = std::make_shared<Channel>();
  core.add(make_request(config, submission_of(4), channel, 1));
  std::vector<int32_t> tokens;
  while (core.step()) {
  }
  for (const RequestDelta& d : channel->poll(0.0)) tokens = d.token_ids;
  return tokens;
}

NATIVE_TEST(an_engine_with_its_thread_survives) {
  const std::vector<int32_t> expected = expected_tokens();
  require(!expected.empty(), "no tokens");
  for (const Point point : {Point::kAlloc, Point::kKernel, Point::kQueue}) {
    run_engine(point, 0, 1, expected);
    fault::arm(point, 0);
    run_engine(point, int64_t{1} << 40, 1, expected);
    for (const int64_t count : {1, 6}) {
      const int64_t stride = (point == Point::kQueue ? 1 : 5) * options().stride;
      for (int64_t nth = 1; nth <= 1200; nth += stride) {
        if (point == Point::kQueue && nth > 60) break;
        try {
          run_engine(point, nth, count, expected);
        } catch (const std::exception& e) {
          fault::arm(point, 0);
          throw std::runtime_error("point " + std::to_string(static_cast<int>(point)) + ", pass " +
                                   std::to_string(nth) + ", " + std::to_string(count) + " in a row: " + e.what());
        }
      }
    }
  }
}

}  // namespace
}  // namespace fastllm::test
