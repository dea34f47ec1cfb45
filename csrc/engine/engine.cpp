#include "engine/engine.h"

#include <pthread.h>
#include <unistd.h>

#include <condition_variable>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <utility>

#include "core/error.h"
#include "core/fault.h"
#include "engine/core.h"
#include "engine/request.h"

namespace fastllm {

struct Engine::Impl {
  Impl(const EngineConfig& engine_config, std::unique_ptr<Executor> executor)
      : config(engine_config),
        core(std::make_unique<EngineCore>(engine_config, std::move(executor))),
        masks(core->masks()) {
    stats = core->stats();
    try {
      thread = std::thread([this] { run(); });
    } catch (const std::system_error& e) {
      fail(ErrorKind::kDevice, "engine: the engine thread cannot be started: ", e.what());
    }
  }

  void check_process() const {
    if (process != getpid()) {
      fail(ErrorKind::kEngineClosed, "this engine was made before fork(); make a new one in the child process");
    }
  }
  void check_open() const {  // under the mutex
    if (is_closing) fail(ErrorKind::kEngineClosed, "the engine is closed", reason.empty() ? "" : ": ", reason);
  }

  void run() noexcept;
  void loop();
  void end(ErrorKind kind, const char* message) noexcept;

  const pid_t process = getpid();
  const EngineConfig config;
  std::unique_ptr<EngineCore> core;  // of the engine thread while it runs
  const std::shared_ptr<MaskExchange> masks;

  std::mutex mutex;  // guards what follows, up to the thread
  std::condition_variable wake;
  std::vector<std::unique_ptr<Request>> inbox;
  std::vector<int64_t> aborts;
  std::vector<std::weak_ptr<Channel>> channels;
  EngineStats stats;
  int64_t num_unscheduled = 0;  // requests in the core that no step has seen
  int64_t num_accepted = 0;
  bool is_closing = false;
  std::string reason;  // why it closed by itself

  std::mutex join_mutex;
  std::thread thread;
};

void Engine::Impl::run() noexcept {
  pthread_setname_np(pthread_self(), "fastllm-engine");  // for top -H, perf, gdb
  try {
    loop();
    end(ErrorKind::kEngineClosed, "the engine was closed before this request had finished");
  } catch (const Error& e) {
    // A step's own errors were handled in the core: this is a broken invariant. Nothing more is run.
    end(e.kind(), e.what());
  } catch (const std::exception& e) {
    end(ErrorKind::kInternal, e.what());
  } catch (...) {
    end(ErrorKind::kInternal, "an unknown exception ended the engine");
  }
}

void Engine::Impl::end(ErrorKind kind, const char* message) noexcept {
  masks->close();
  const std::scoped_lock lock(mutex);
  const bool is_unexpected = !is_closing;
  is_closing = true;
  try {
    if (is_unexpected) reason = message;
    for (std::unique_ptr<Request>& request : inbox) core->add(std::move(request));
    inbox.clear();
    core->fail_all(kind, message);
    stats = core->stats();
  } catch (...) {
    // The channels are closed below, which their consumers see.
  }
  for (const std::weak_ptr<Channel>& weak : channels) {
    if (const std::shared_ptr<Channel> channel = weak.lock()) channel->close();
  }
}

void Engine::Impl::loop() {
  std::vector<std::unique_ptr<Request>> arrivals;
  std::vector<int64_t> leavers;
  while (true) {
    {
      std::unique_lock lock(mutex);
      stats = core->stats();
      num_unscheduled = core->num_unscheduled_requests();
      wake.wait(lock, [this] { return is_closing || !inbox.empty() || !aborts.empty() || core->can_step(); });
      if (is_closing) return;
      arrivals.swap(inbox);
      leavers.swap(aborts);
      num_unscheduled += static_cast<int64_t>(arrivals.size());
      stats.num_waiting += static_cast<int64_t>(arrivals.size());  // until this loop's own figures are published
    }
    for (std::unique_ptr<Request>& request : arrivals) core->add(std::move(request));
    for (const int64_t id : leavers) core->abort(id);
    arrivals.clear();
    leavers.clear();
    core->step();
  }
}

Engine::Engine(const EngineConfig& config, std::unique_ptr<Executor> executor)
    : impl_(std::make_unique<Impl>(config, std::move(executor))) {}

Engine::~Engine() {
  if (impl_->process != getpid()) {
    // Its thread exists only in the parent: joining would wait for ever, and so may destroying its lock.
    static_cast<void>(impl_.release());
    return;
  }
  close();
}

std::shared_ptr<Channel> Engine::open_channel() {
  impl_->check_process();
  auto channel = std::make_shared<Channel>();
  const std::scoped_lock lock(impl_->mutex);
  impl_->check_open();
  std::erase_if(impl_->channels, [](const std::weak_ptr<Channel>& c) { return c.expired(); });
  impl_->channels.push_back(channel);
  return channel;
}

int64_t Engine::submit(Submission submission, const std::shared_ptr<Channel>& channel) {
  impl_->check_process();
  if (channel == nullptr) fail(ErrorKind::kInvalidRequest, "submit: the channel is missing; open_channel() makes one");
  FASTLLM_FAULT_POINT(kQueue, kInternal, "submit");
  int64_t id = 0;
  {
    const std::scoped_lock lock(impl_->mutex);
    impl_->check_open();
    id = ++impl_->num_accepted;
  }
  // The checks and copies of a long prompt do not hold up the engine.
  std::unique_ptr<Request> request = make_request(impl_->config, std::move(submission), channel, id);
  {
    const std::scoped_lock lock(impl_->mutex);
    impl_->check_open();
    const int64_t queued = static_cast<int64_t>(impl_->inbox.size()) + impl_->num_unscheduled;
    if (queued >= impl_->config.max_queue) {
      fail(ErrorKind::kQueueFull, "the queue is full: ", queued, " requests wait, max_queue is ",
           impl_->config.max_queue, "; try again later");
    }
    impl_->inbox.push_back(std::move(request));
  }
  impl_->wake.notify_one();
  return id;
}

void Engine::abort(int64_t request_id) {
  impl_->check_process();
  {
    const std::scoped_lock lock(impl_->mutex);
    if (impl_->is_closing) return;
    impl_->aborts.push_back(request_id);
  }
  impl_->wake.notify_one();
}

std::vector<MaskTask> Engine::poll_mask_tasks(double timeout_s) { return impl_->masks->poll(timeout_s); }

void Engine::reply_masks(std::vector<MaskReply> replies) {
  impl_->check_process();
  impl_->masks->reply(std::move(replies));
  // Taken once, so that the engine thread is either before its look at the replies, or asleep and woken.
  {
    const std::scoped_lock lock(impl_->mutex);
  }
  impl_->wake.notify_one();
}

EngineStats Engine::stats() const {
  impl_->check_process();
  const std::scoped_lock lock(impl_->mutex);
  EngineStats stats = impl_->stats;
  stats.num_waiting += static_cast<int64_t>(impl_->inbox.size());
  return stats;
}

const EngineConfig& Engine::config() const { return impl_->config; }

void Engine::close() {
  impl_->check_process();
  {
    const std::scoped_lock lock(impl_->mutex);
    impl_->is_closing = true;
  }
  impl_->wake.notify_one();
  const std::scoped_lock lock(impl_->join_mutex);
  if (impl_->thread.joinable()) impl_->thread.join();
  impl_->core.reset();
}

bool Engine::is_closed() const {
  impl_->check_process();
  const std::scoped_lock lock(impl_->mutex);
  return impl_->is_closing;
}

}  // namespace fastllm
