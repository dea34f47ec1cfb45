// Engine from many threads, with the fake executor: concurrent submit, abort, poll, stats, dropped channels and close.
// Meant for the sanitizers; the checks are that everything ends, once, and that no page stays referenced.
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

// Submits and aborts; reads until everything it submitted has ended.
void client(Engine& engine, uint32_t seed, std::atomic<int64_t>& num_ended) {
  std::mt19937 random(seed);
  const std::shared_ptr<Channel> channel = engine.open_channel();
  std::map<int64_t, int64_t> open;  // request -> sequences that have not ended
  const auto read = [&](double timeout_s) {
    for (const RequestDelta& d : channel->poll(timeout_s)) {
      if (d.finish_reason == FinishReason::kNone) continue;
      require(open.contains(d.request_id), "an unknown or ended request spoke");
      if (--open[d.request_id] == 0) open.erase(d.request_id);
      ++num_ended;
    }
  };
  for (int i = 0; i < 200; ++i) {
    Submission submission = random_submission(random);
    const int64_t n = submission.params.n;
    const int64_t id = engine.submit(std::move(submission), channel);
    open[id] = n;
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
  Engine engine(config, std::make_unique<FakeExecutor>(config, controls));
  std::atomic<int64_t> num_ended{0};
  std::atomic<bool> failed{false};
  std::vector<std::thread> threads;
  for (uint32_t seed = 1; seed <= 4; ++seed) {
    threads.emplace_back([&, seed] {
      try {
        client(engine, seed, num_ended);
      } catch (const std::exception& e) {
        std::cerr << "client " << seed << ": " << e.what() << "\n";
        failed = true;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  require(!failed, "a client failed");
  EngineStats stats = engine.stats();
  for (int i = 0; i < 1000 && stats.num_requests != stats.num_requests_finished; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    stats = engine.stats();
  }
  require(stats.num_pages_referenced == 0 && stats.num_running == 0 && stats.num_waiting == 0, "something was left");
  require(controls->num_bad_reads == 0, "a slot held another position");
  const int64_t steps = controls->num_steps;
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  require(controls->num_steps == steps, "an idle engine steps");
  engine.close();
  engine.close();
  std::cout << num_ended << " sequences ended, " << steps << " steps, " << stats.num_preemptions << " preemptions\n";
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
