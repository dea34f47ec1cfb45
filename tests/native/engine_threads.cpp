// Engine from many threads, with the fake executor: concurrent submit, abort, poll, stats, masks, dropped channels and
// close. Meant for the sanitizers; the checks are that everything ends, once, that masks were kept to, and that no page
// stays referenced.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <iostream>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "core/error.h"
#include "cpu/cpu_backend.h"
#include "engine/engine.h"
#include "engine/fake_executor.h"
#include "harness.h"
#include "tiny_model.h"

namespace fastllm::test {
namespace {

EngineConfig small_config() {
  EngineConfig config;
  config.num_pages = 24;
  config.page_size = 4;
  config.vocab_size = 50;
  config.max_model_len = 64;
  config.max_num_seqs = 8;
  config.max_num_batched_tokens = 32;
  config.max_logit_rows = 16;
  config.max_queue = 1000;
  return config;
}

Submission random_submission(std::mt19937& random) {
  Submission submission;
  const auto length = 1 + random() % 20;
  for (std::size_t i = 0; i < length; ++i) submission.prompt_token_ids.push_back(static_cast<int64_t>(random() % 50));
  submission.params.max_tokens = 1 + static_cast<int64_t>(random() % 20);
  submission.params.n = 1 + static_cast<int64_t>(random() % 3);
  return submission;
}

// A grammar of which each token decides alone what may follow it.
bool may_follow(int32_t before, int32_t token) { return (before + token) % 3 != 0; }
bool completes(int32_t token) { return token % 11 == 0; }
constexpr int32_t kStart = 1;

std::vector<uint32_t> mask_after(int32_t before) {
  std::vector<uint32_t> mask(2, 0);
  for (int32_t token = 0; token < 50; ++token) {
    if (may_follow(before, token)) mask[static_cast<std::size_t>(token / 32)] |= 1u << (token % 32);
  }
  return mask;
}

// Several threads that make masks, as long as the engine is open.
class MaskMakers {
 public:
  MaskMakers(Engine& engine, int num_threads) : engine_(engine) {
    for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { run(); });
  }
  MaskMakers(const MaskMakers&) = delete;
  MaskMakers& operator=(const MaskMakers&) = delete;
  ~MaskMakers() {
    engine_.close();
    for (std::thread& thread : threads_) thread.join();
  }
  [[nodiscard]] int64_t num_ended() const { return num_ended_; }

 private:
  void run() {
    while (!engine_.is_closed()) {
      std::vector<MaskReply> replies;
      for (const MaskTask& task : engine_.poll_mask_tasks(60.0)) {
        if (task.token < 0) {
          ++num_ended_;
          continue;
        }
        if (task.token % 5 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));  // late
        replies.push_back({.request_id = task.request_id, .index = task.index, .mask = {}, .error = ""});
        if (!completes(task.token)) replies.back().mask = mask_after(task.token);
        replies.push_back({.request_id = -1, .index = 0, .mask = mask_after(0), .error = ""});  // of nobody
      }
      if (!replies.empty()) engine_.reply_masks(std::move(replies));
    }
  }

  Engine& engine_;
  std::atomic<int64_t> num_ended_{0};
  std::vector<std::thread> threads_;
};

struct Totals {
  std::atomic<int64_t> num_ended{0};        // sequences
  std::atomic<int64_t> num_constrained{0};  // requests
};

// Submits and aborts; reads until everything it submitted has ended.
void client(Engine& engine, uint32_t seed, Totals& totals) {
  std::mt19937 random(seed);
  const std::shared_ptr<Channel> channel = engine.open_channel();
  std::map<int64_t, int64_t> open;                             // request -> sequences that have not ended
  std::map<std::pair<int64_t, int32_t>, int32_t> constrained;  // (request, sequence) -> its last token
  const auto follow = [&](const RequestDelta& d) {
    const auto found = constrained.find({d.request_id, d.index});
    if (found == constrained.end()) return;
    for (const int32_t token : d.token_ids) {
      require(!completes(found->second) && may_follow(found->second, token), "a token that its mask forbids");
      found->second = token;
    }
    require(d.finish_reason != FinishReason::kStop || completes(found->second), "a grammar ended that goes on");
    require(d.finish_reason != FinishReason::kError, "a sequence with a grammar failed: " + d.error_message);
  };
  const auto read = [&](double timeout_s) {
    for (const RequestDelta& d : channel->poll(timeout_s)) {
      follow(d);
      if (d.finish_reason == FinishReason::kNone) continue;
      require(open.contains(d.request_id), "an unknown or ended request spoke");
      if (--open[d.request_id] == 0) open.erase(d.request_id);
      ++totals.num_ended;
    }
  };
  for (int i = 0; i < 200; ++i) {
    Submission submission = random_submission(random);
    const int64_t n = submission.params.n;
    const bool is_constrained = random() % 2 == 0;
    if (is_constrained) submission.masks = MaskSource{++totals.num_constrained, mask_after(kStart)};
    const int64_t id = engine.submit(std::move(submission), channel);
    open[id] = n;
    for (int32_t index = 0; is_constrained && index < n; ++index) constrained[{id, index}] = kStart;
    if (random() % 3 == 0) engine.abort(id - static_cast<int64_t>(random() % 3));
    if (random() % 4 == 0) static_cast<void>(engine.stats());
    if (random() % 4 == 0) read(0.0);
    if (random() % 50 == 0) {
      const std::shared_ptr<Channel> dropped = engine.open_channel();
      engine.submit(random_submission(random), dropped);
    }
  }
  for (int i = 0; !open.empty(); ++i) {
    require(i < 10000, "requests do not end");
    read(0.1);
  }
}

NATIVE_TEST(clients_submit_abort_and_read_at_once) {
  const EngineConfig config = small_config();
  const auto controls = std::make_shared<FakeControls>();
  controls->delay_us =
      20;  // a step with nothing but late masks waits that long for them, else it sleeps until they come
  Engine engine(config, std::make_unique<FakeExecutor>(config, controls));
  const MaskMakers makers(engine, 2);
  Totals totals;
  std::atomic<bool> failed{false};
  std::vector<std::thread> threads;
  for (uint32_t seed = 1; seed <= 4; ++seed) {
    threads.emplace_back([&, seed] {
      try {
        client(engine, seed, totals);
      } catch (const std::exception& e) {
        std::cerr << "client " << seed << ": " << e.what() << "\n";
        failed = true;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  require(!failed, "a client failed");
  EngineStats stats = engine.stats();
  const auto is_done = [&] {
    return stats.num_requests == stats.num_requests_finished && makers.num_ended() == totals.num_constrained;
  };
  for (int i = 0; i < 1000 && !is_done(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    stats = engine.stats();
  }
  require(makers.num_ended() == totals.num_constrained, "the end of a request with a grammar was not told once");
  require(stats.num_pages_referenced == 0 && stats.num_running == 0 && stats.num_waiting == 0, "something was left");
  require(controls->num_bad_reads == 0, "a slot held another position");
  const int64_t steps = controls->num_steps;
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  require(controls->num_steps == steps, "an idle engine steps");
  engine.close();
  engine.close();
  std::cout << totals.num_ended << " sequences ended, " << steps << " steps, " << stats.num_preemptions
            << " preemptions, " << stats.num_late_masks << " of " << stats.num_masks << " masks late\n";
}

// Two engines would share scratch memory and threads.
NATIVE_TEST(a_model_runs_in_one_engine_at_a_time) {
  const std::shared_ptr<Model> model = make_tiny_model(make_cpu_backend(2, choose_isa(nullptr)));
  const EngineConfig config = tiny_config(*model->backend);
  const StepLimits limits{config.max_num_batched_tokens, config.max_num_seqs, config.max_logit_rows, 0};
  const auto make = [&] { return std::make_unique<ModelExecutor>(model, limits, config.num_pages, DType::kF32); };
  Engine engine(config, make());
  require_error(ErrorKind::kInvalidRequest, make, "a second engine");
  engine.close();
  Engine again(config, make());
  const std::shared_ptr<Channel> channel = again.open_channel();
  std::mt19937 random(1);
  Submission submission = random_submission(random);
  for (int64_t& token : submission.prompt_token_ids) token %= config.vocab_size;
  again.submit(std::move(submission), channel);
  require(!channel->poll(10.0).empty(), "the second engine does not run");
}

// close() in the middle of work: everything ends with kEngineClosed, later calls throw.
NATIVE_TEST(close_in_the_middle_of_work) {
  const EngineConfig config = small_config();
  const auto controls = std::make_shared<FakeControls>();
  controls->delay_us = 1000;
  Engine engine(config, std::make_unique<FakeExecutor>(config, controls));
  const std::shared_ptr<Channel> channel = engine.open_channel();
  std::mt19937 random(7);
  int64_t num_open = 0;
  for (int i = 0; i < 40; ++i) {
    Submission submission = random_submission(random);
    num_open += submission.params.n;
    engine.submit(std::move(submission), channel);
  }
  std::thread closer([&engine] { engine.close(); });
  engine.close();
  closer.join();
  for (const RequestDelta& d : channel->poll(1.0)) {
    if (d.finish_reason == FinishReason::kNone) continue;
    --num_open;
    require(d.finish_reason != FinishReason::kError || d.error_kind == ErrorKind::kEngineClosed, "the wrong error");
  }
  require(num_open == 0, "close() left requests without an end");
  require(channel->is_closed() && channel->poll(10.0).empty(), "a closed channel waits");
  try {
    engine.submit(random_submission(random), channel);
    require(false, "a closed engine took a request");
  } catch (const Error& e) {
    require(e.kind() == ErrorKind::kEngineClosed, "the wrong error");
  }
}

// All that could run rests until a mask comes, which never does.
NATIVE_TEST(close_while_a_mask_is_awaited) {
  const EngineConfig config = small_config();
  const auto controls = std::make_shared<FakeControls>();
  Engine engine(config, std::make_unique<FakeExecutor>(config, controls));
  const std::shared_ptr<Channel> channel = engine.open_channel();
  Submission submission;
  submission.prompt_token_ids = {1, 2, 3};
  submission.params.max_tokens = 5;
  submission.masks = MaskSource{7, mask_after(kStart)};
  const int64_t id = engine.submit(std::move(submission), channel);
  const std::vector<MaskTask> tasks = engine.poll_mask_tasks(60.0);
  require(tasks.size() == 1 && tasks[0].key == 7 && tasks[0].request_id == id, "the first token asks for a mask");
  require_error(
      ErrorKind::kInvalidRequest,
      [&] { engine.reply_masks({{.request_id = id, .index = 0, .mask = {1}, .error = ""}}); }, "32 bits");
  std::thread maker([&engine] {
    while (!engine.is_closed()) engine.poll_mask_tasks(600.0);
  });
  engine.close();
  maker.join();  // at once, not after its timeout
  bool has_ended = false;
  for (const RequestDelta& d : channel->poll(1.0)) has_ended |= d.error_kind == ErrorKind::kEngineClosed;
  require(has_ended, "close() left the sequence without an end");
  engine.reply_masks({{.request_id = id, .index = 0, .mask = mask_after(0), .error = ""}});  // too late for anybody
  for (const MaskTask& task : engine.poll_mask_tasks(600.0)) require(task.token < 0, "a closed engine wants a mask");
}

#if !defined(__SANITIZE_THREAD__)  // it does not follow a fork of a process with threads
int use_after_fork(Engine& engine, const std::shared_ptr<Channel>& channel) {
  alarm(10);
  std::mt19937 random(1);
  try {
    const auto refuses = [](auto&& call) { require_error(ErrorKind::kEngineClosed, call, "after fork()"); };
    refuses([&] { engine.submit(random_submission(random), channel); });
    refuses([&] { engine.abort(1); });
    refuses([&] { static_cast<void>(engine.stats()); });
    refuses([&] { static_cast<void>(engine.open_channel()); });
    refuses([&] { engine.poll_mask_tasks(1.0); });
    refuses([&] { engine.reply_masks({}); });
    refuses([&] { engine.close(); });
    refuses([&] { channel->poll(1.0); });
    engine.~Engine();
    // What the child makes itself works.
    const EngineConfig config = small_config();
    Engine own(config, std::make_unique<FakeExecutor>(config, std::make_shared<FakeControls>()));
    const std::shared_ptr<Channel> own_channel = own.open_channel();
    own.submit(random_submission(random), own_channel);
    require(!own_channel->poll(5.0).empty(), "an engine of the child does not run");
    own.close();
    return 0;
  } catch (const std::exception& e) {
    std::cerr << "child: " << e.what() << std::endl;
    return 1;
  }
}

NATIVE_TEST(fork_while_an_engine_works) {
  const EngineConfig config = small_config();
  const auto controls = std::make_shared<FakeControls>();
  controls->delay_us = 100;
  Engine engine(config, std::make_unique<FakeExecutor>(config, controls));
  const std::shared_ptr<Channel> channel = engine.open_channel();
  std::mt19937 random(5);
  for (int i = 0; i < 100; ++i) {
    Submission submission = random_submission(random);
    int64_t num_open = submission.params.n;
    engine.submit(std::move(submission), channel);
    const pid_t child = fork();
    require(child >= 0, "fork failed");
    if (child == 0) _exit(use_after_fork(engine, channel));
    int status = 0;
    require(waitpid(child, &status, 0) == child, "waitpid failed");
    require(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child ended with status " + std::to_string(status));
    for (int tries = 0; num_open > 0; ++tries) {
      require(tries < 100, "the parent's requests do not end");
      for (const RequestDelta& d : channel->poll(0.1)) num_open -= d.finish_reason == FinishReason::kNone ? 0 : 1;
    }
  }
}
#endif

}  // namespace
}  // namespace fastllm::test
