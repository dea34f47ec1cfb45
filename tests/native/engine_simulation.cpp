// Random schedules over EngineCore with the fake executor: submit, step, abort (any state, twice), fork n, preempt,
// evict, executor faults, output queue faults, non-finite rows, dropped channels, close. After every step the
// invariants of scheduler, pages and prefix index are checked; at the end every sequence has ended once, its tokens are
// those that the request gives alone, and no page is referenced. (The engine has no timers: the clock only fills
// metrics, so there are no clock jumps to play.)
//
// A failure prints its seed; run that seed alone with --schedules 1 --seed S. Seeds that once failed are in
// tests/seeds.
#include <algorithm>
#include <functional>
#include <iostream>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/error.h"
#include "core/fault.h"
#include "engine/core.h"
#include "engine/fake_executor.h"
#include "harness.h"

namespace fastllm::test {
namespace {

struct Output {
  std::vector<int32_t> tokens;
  std::vector<float> logprobs;
  std::vector<float> prompt_logprobs;
  std::string text;
  FinishReason reason = FinishReason::kNone;
};
using Outputs = std::map<std::pair<int64_t, int32_t>, Output>;

template <class T>
bool is_prefix(const std::vector<T>& part, const std::vector<T>& whole) {
  return part.size() <= whole.size() && std::equal(part.begin(), part.end(), whole.begin());
}

void collect(Channel& channel, Outputs& outputs) {
  for (RequestDelta& d : channel.poll(0.0)) {
    Output& out = outputs[{d.request_id, d.index}];
    require(out.reason == FinishReason::kNone, "a delta came after the end");
    out.tokens.insert(out.tokens.end(), d.token_ids.begin(), d.token_ids.end());
    for (const TokenLogprobs& l : d.logprobs) out.logprobs.push_back(l.logprob);
    for (const TokenLogprobs& l : d.prompt_logprobs) out.prompt_logprobs.push_back(l.logprob);
    out.text += d.text;
    out.reason = d.finish_reason;
    // A sequence whose results could not be handed over has generated more than was seen.
    const auto num_seen = static_cast<int64_t>(out.tokens.size());
    require(d.metrics.num_generated_tokens == num_seen ||
                (out.reason == FinishReason::kError && d.metrics.num_generated_tokens > num_seen),
            "metrics miscount the tokens");
  }
}

// Makes the masks of a grammar that is a hash of the tokens so far: some tokens are allowed, sometimes it is complete.
class MaskMaker {
 public:
  MaskMaker(std::shared_ptr<MaskExchange> exchange, int64_t vocab_size)
      : exchange_(std::move(exchange)), vocab_size_(vocab_size) {}

  std::vector<uint32_t> mask_after(int64_t key, const std::vector<int32_t>& output) const {
    std::vector<uint32_t> mask(static_cast<std::size_t>((vocab_size_ + 31) / 32), 0);
    const uint64_t hash = hash_of(key, output);
    for (int64_t t = 0; t < vocab_size_; ++t) {
      const bool allowed =
          t == static_cast<int64_t>(hash % static_cast<uint64_t>(vocab_size_)) || (hash >> (t % 60) & 1);
      if (allowed) mask[static_cast<std::size_t>(t / 32)] |= 1u << (t % 32);
    }
    return mask;
  }

  void take_tasks() {
    for (const MaskTask& task : exchange_->poll(0.0)) {
      if (task.token < 0) {
        require(++ended_[task.key] == 1, "a request with a grammar ended twice");
      } else {
        require(!ended_.contains(task.key), "a mask is wanted for a request that has ended");
        pending_.push_back(task);
      }
    }
  }
  // Answers the oldest `count` tasks.
  void answer(std::size_t count) {
    std::vector<MaskReply> replies;
    for (; count > 0 && !pending_.empty(); --count) {
      const MaskTask task = pending_.front();
      pending_.erase(pending_.begin());
      std::vector<int32_t>& output = outputs_[{task.request_id, task.index}];
      output.push_back(task.token);
      MaskReply reply{.request_id = task.request_id, .index = task.index, .mask = {}, .error = ""};
      if (hash_of(task.key, output) % 11 != 0) reply.mask = mask_after(task.key, output);
      replies.push_back(std::move(reply));
    }
    if (!replies.empty()) exchange_->reply(std::move(replies));
  }
  [[nodiscard]] std::size_t num_pending() const { return pending_.size(); }
  [[nodiscard]] std::size_t num_ended() const { return ended_.size(); }

 private:
  static uint64_t hash_of(int64_t key, const std::vector<int32_t>& output) {
    uint64_t h = static_cast<uint64_t>(key) * 0x9e3779b97f4a7c15u;
    for (const int32_t token : output) h = (h ^ static_cast<uint32_t>(token)) * 0xbf58476d1ce4e5b9u + (h >> 29);
    return h ^ (h >> 31);
  }

  std::shared_ptr<MaskExchange> exchange_;
  int64_t vocab_size_;
  std::vector<MaskTask> pending_;
  std::map<std::pair<int64_t, int32_t>, std::vector<int32_t>> outputs_;
  std::map<int64_t, int64_t> ended_;
};

// Looks at each step before it runs: what it writes is in nobody's view, what it reads is held.
class WatchedExecutor final : public Executor {
 public:
  WatchedExecutor(const EngineConfig& config, std::shared_ptr<FakeControls> controls)
      : page_size_(config.page_size), fake_(config, std::move(controls)) {}
  void watch(const EngineCore& core, std::function<void()> meanwhile) {
    core_ = &core;
    meanwhile_ = std::move(meanwhile);
  }

  [[nodiscard]] ExpertTotals expert_totals() override { return {}; }
  void execute(Step& step) override {
    const PagePool& pool = core_->pages();
    const StepView& view = step.view;
    const auto require_own = [&](int32_t page) {
      if (pool.is_indexed(page)) problem_ = "a page is in the prefix index before its step has completed";
      if (pool.references(page) < 1) problem_ = "a page is written that nobody holds";
    };
    for (int64_t t = 0; t < view.num_tokens; ++t) require_own(static_cast<int32_t>(view.slots[t] / page_size_));
    for (const int32_t page : step.copy_to) require_own(page);
    for (const int32_t page : step.copy_from) {
      if (pool.references(page) < 1) problem_ = "a page is copied that nobody holds";
    }
    for (int64_t s = 0; s < view.num_seqs; ++s) {
      for (int64_t i = 0; i * page_size_ < view.context_len[s]; ++i) {
        if (pool.references(view.block_table[s * view.max_pages + i]) < 1)
          problem_ = "a page is read that nobody holds";
      }
    }
    meanwhile_();
    fake_.execute(step);
  }
  // An exception out of execute() would only fail the step.
  void check() const { require(problem_.empty(), problem_); }

 private:
  int64_t page_size_;
  FakeExecutor fake_;
  const EngineCore* core_ = nullptr;
  std::function<void()> meanwhile_;
  std::string problem_;
};

class Simulation {
 public:
  explicit Simulation(uint64_t seed) : random_(seed) {
    config_.page_size = pick(1, 6);
    config_.num_pages = pick(3, 40);
    config_.vocab_size = pick(2, 40);
    config_.max_model_len = pick(4, 60);
    config_.max_num_seqs = pick(1, 6);
    config_.max_num_batched_tokens = config_.max_num_seqs + pick(0, 20);
    config_.max_logit_rows = config_.max_num_seqs + pick(0, 4);
    config_.enable_prefix_caching = chance(80);
    config_.static_batching = chance(10);
    config_.seed = seed;
    if (chance(50)) config_.eos_ids = {static_cast<int32_t>(pick(0, config_.vocab_size - 1))};
    std::vector<std::string> names;
    for (int64_t i = 0; i < config_.vocab_size; ++i) names.push_back(std::string(1, static_cast<char>('a' + i % 26)));
    config_.byte_table =
        std::make_shared<ByteTable>(names, std::vector<uint8_t>(static_cast<std::size_t>(config_.vocab_size), 0));
    auto executor = std::make_unique<WatchedExecutor>(config_, controls_);
    executor_ = executor.get();
    core_ = std::make_unique<EngineCore>(config_, std::move(executor));
    masks_ = std::make_unique<MaskMaker>(core_->masks(), config_.vocab_size);
    executor_->watch(*core_, [this] { make_masks(); });
    for (auto& channel : channels_) channel = std::make_shared<Channel>();
    nan_token_ = chance(20) ? pick(0, config_.vocab_size - 1) : -1;
    controls_->nan_token = nan_token_;
  }

  ~Simulation() { fault::arm(fault::Point::kQueue, 0); }

  void run() {
    const int64_t num_actions = pick(20, 80);
    for (int64_t i = 0; i < num_actions; ++i) act();
    if (chance(10)) {
      core_->fail_all(ErrorKind::kEngineClosed, "closed");
      check_state();
    }
    for (int64_t i = 0; core_->has_work(); ++i) {
      require(i < 100000, "the engine does not come to an end");
      step();
    }
    require(controls_->num_bad_reads == 0, "a K/V slot held another position, or a copy met a copy");
    const EngineStats stats = core_->stats();
    require(stats.num_pages_referenced == 0 && stats.num_running == 0 && stats.num_waiting == 0, "something was left");
    require(stats.num_requests == stats.num_requests_finished, "a request was left");
    masks_->take_tasks();
    require(std::cmp_equal(masks_->num_ended(), num_constrained_), "the end of a request with a grammar was not told");
    late_masks += stats.num_late_masks;
    masks += stats.num_masks;
    for (const auto& channel : channels_) {
      if (channel) collect(*channel, outputs_);
    }
    fault::arm(fault::Point::kQueue, 0);
    compare_with_alone();
    preemptions += stats.num_preemptions;
    prefix_hits += stats.prefix_hit_tokens;
    steps += stats.num_steps;
  }

  static inline int64_t masks = 0, late_masks = 0;
  static inline int64_t preemptions = 0, prefix_hits = 0, steps = 0, compared = 0, refused = 0;

 private:
  int64_t pick(int64_t min, int64_t max) { return std::uniform_int_distribution<int64_t>(min, max)(random_); }
  bool chance(int64_t percent) { return pick(1, 100) <= percent; }
  int64_t token() { return pick(0, config_.vocab_size - 1); }

  void act() {
    const int64_t what = pick(1, 100);
    if (what <= 25) {
      submit();
    } else if (what <= 31) {
      const int64_t id = pick(0, next_id_);
      aborted_[id] = true;
      core_->abort(id);
      check_state();
      if (chance(30)) core_->abort(id);
    } else if (what <= 33) {
      controls_->fail_in = pick(1, 3);
    } else if (what == 34 && chance(20)) {
      drop_channel();
    } else if (what == 35) {
      fault::arm(fault::Point::kQueue, pick(1, 6));
    } else {
      step();
    }
  }

  // Some of the masks that are wanted: those that come too late, just in time, and early.
  void make_masks() {
    masks_->take_tasks();
    masks_->answer(static_cast<std::size_t>(pick(0, 3)));
  }

  void step() {
    if (chance(30)) make_masks();
    const bool had_work = core_->has_work();
    const int64_t steps_before = controls_->num_steps;
    const bool did = core_->step();
    require(!did || controls_->num_steps == steps_before + 1, "something waits, nothing runs, and nothing was done");
    masks_->take_tasks();
    const bool rests = masks_->num_pending() > 0;
    require(did || !core_->has_work() || rests, "there was work and no step");
    require(did || core_->can_step() == core_->masks()->has_replies(), "the engine does not see that it can go on");
    if (!did && rests) masks_->answer(1);
    if (had_work) check_state();
    if (chance(30)) {
      for (const auto& channel : channels_) {
        if (channel) collect(*channel, outputs_);
      }
    }
  }

  void check_state() {
    executor_->check();
    core_->check_integrity();
  }

  void drop_channel() {
    auto& channel = channels_[static_cast<std::size_t>(pick(0, 2))];
    for (auto& [id, used] : channel_of_) {
      if (used.lock() == channel) dropped_[id] = true;
    }
    channel.reset();
    channel = std::make_shared<Channel>();
  }

  SamplingParams random_params() {
    SamplingParams p;
    p.n = chance(30) ? pick(2, 5) : 1;
    p.temperature = chance(50) ? 0.0 : 1.0;
    p.seed = pick(0, 3);
    if (chance(20)) p.presence_penalty = 0.5;
    if (chance(90)) {
      p.max_tokens = pick(1, 14);
    } else {
      p.max_tokens.reset();
    }
    if (chance(20)) p.min_tokens = pick(0, std::min<int64_t>(p.max_tokens.value_or(5), 5));
    if (chance(20)) p.ignore_eos = true;
    if (chance(20)) p.logprobs = pick(0, 3);
    if (chance(20)) p.prompt_logprobs = pick(0, 3);
    if (chance(15)) p.stop_token_ids = {token()};
    if (chance(10)) p.banned_token_ids = {token()};
    if (chance(10)) p.bad_words = {{token()}, {token(), token()}};
    if (chance(10)) p.allowed_token_ids = {{token(), token(), token()}};
    if (chance(15))
      p.stop = {std::string(1, static_cast<char>('a' + pick(0, 25))) + static_cast<char>('a' + pick(0, 25))};
    return p;
  }

  void submit() {
    Submission submission;
    // Prompts share heads, so that the prefix cache has something to find.
    const int64_t length = pick(1, 24);
    const int64_t shared = pick(0, length);
    for (int64_t i = 0; i < length; ++i)
      submission.prompt_token_ids.push_back(i < shared ? i % config_.vocab_size : token());
    submission.params = random_params();
    submission.priority = chance(20) ? pick(-1, 1) : 0;
    submission.cache_salt = chance(20) ? "other" : "";
    if (chance(25)) submission.masks = MaskSource{next_id_ + 1, masks_->mask_after(next_id_ + 1, {})};
    const Submission copy = submission;
    const auto& channel = channels_[static_cast<std::size_t>(pick(0, 2))];
    try {
      auto request = make_request(config_, std::move(submission), channel, next_id_ + 1);
      ++next_id_;
      submissions_[next_id_] = copy;
      channel_of_[next_id_] = channel;
      num_constrained_ += copy.masks ? 1 : 0;
      core_->add(std::move(request));
    } catch (const Error& e) {
      require(e.kind() == ErrorKind::kInvalidRequest, "refused with the wrong error");
      ++refused;
    }
    check_state();
  }

  // The same request in an engine of its own: no neighbours, no cache, whole prompt at once.
  Outputs alone(int64_t id, const Submission& submission) {
    EngineConfig config = config_;
    config.num_pages = 64 * 8;
    config.page_size = 8;
    config.max_num_seqs = 8;
    config.max_num_batched_tokens = 128;
    config.max_logit_rows = 128;
    config.enable_prefix_caching = false;
    // The bound that ends a sequence without max_tokens is part of the answer.
    config.max_model_len = max_sequence_len(config_);
    const auto controls = std::make_shared<FakeControls>();
    controls->nan_token = nan_token_;
    EngineCore core(config, std::make_unique<FakeExecutor>(config, controls));
    const auto channel = std::make_shared<Channel>();
    core.add(make_request(config, Submission(submission), channel, id));
    MaskMaker maker(core.masks(), config.vocab_size);
    while (core.has_work()) {
      core.step();
      maker.take_tasks();
      maker.answer(maker.num_pending());
    }
    Outputs outputs;
    collect(*channel, outputs);
    return outputs;
  }

  // Requests that nothing but their tokens shapes, straight from the definition of the fake, without any engine.
  static bool is_plain(const SamplingParams& p) {
    return p.presence_penalty == 0.0 && p.min_tokens == 0 && p.banned_token_ids.empty() && p.bad_words.empty() &&
           !p.allowed_token_ids && p.stop.empty();
  }
  std::vector<int32_t> by_definition(const Submission& submission, int32_t index) const {
    const SamplingParams& p = submission.params;
    std::vector<int32_t> tokens(submission.prompt_token_ids.begin(), submission.prompt_token_ids.end());
    const auto prompt_len = static_cast<int64_t>(tokens.size());
    const int64_t max_tokens = p.max_tokens.value_or(max_sequence_len(config_) - prompt_len);
    SampleRow row;
    row.temperature = static_cast<float>(p.temperature);
    row.seed = static_cast<uint64_t>(*p.seed);
    row.sequence = static_cast<uint64_t>(index);
    for (int64_t i = 0; i < max_tokens; ++i) {
      row.position = tokens.size();
      if (std::ranges::find(tokens, nan_token_) != tokens.end()) break;
      tokens.push_back(fake_next_token(tokens, row, config_.vocab_size));
      const bool is_stop = std::ranges::find(p.stop_token_ids, tokens.back()) != p.stop_token_ids.end();
      const bool is_eos = std::ranges::find(config_.eos_ids, tokens.back()) != config_.eos_ids.end();
      if (is_stop || (is_eos && !p.ignore_eos)) break;
    }
    return {tokens.begin() + prompt_len, tokens.end()};
  }

  void compare_with_alone() {
    for (const auto& [id, submission] : submissions_) {
      if (dropped_.contains(id)) continue;
      const Outputs expected = alone(id, submission);
      for (int32_t index = 0; index < submission.params.n; ++index) {
        require(outputs_.contains({id, index}), "a sequence never said anything");
        const Output& got = outputs_[{id, index}];
        const Output& want = expected.at({id, index});
        const std::string name = "request " + std::to_string(id) + "." + std::to_string(index);
        require(got.reason != FinishReason::kNone, name + " never ended");
        if (is_plain(submission.params) && !submission.masks) {
          require(want.tokens == by_definition(submission, index), name + " alone has not the tokens it should have");
        }
        require(is_prefix(got.tokens, want.tokens), name + " has other tokens than alone");
        require(is_prefix(got.logprobs, want.logprobs), name + " has other logprobs than alone");
        // A NaN ends a whole chunk without its finite rows, so there the chunks show.
        require(want.reason == FinishReason::kError || is_prefix(got.prompt_logprobs, want.prompt_logprobs),
                name + " has other prompt logprobs than alone");
        if (got.reason == FinishReason::kAbort) {
          require(aborted_.contains(id), name + " was aborted by nobody");
        } else if (got.reason != FinishReason::kError) {
          require(got.reason == want.reason && got.tokens == want.tokens && got.text == want.text &&
                      got.prompt_logprobs == want.prompt_logprobs,
                  name + " ended in another way than alone");
          const bool scores = submission.params.prompt_logprobs && index == 0;
          require(got.prompt_logprobs.size() == (scores ? submission.prompt_token_ids.size() - 1 : 0),
                  name + " has the wrong number of prompt logprobs");
          ++compared;
        }
      }
    }
  }

  std::mt19937_64 random_;
  EngineConfig config_;
  std::shared_ptr<FakeControls> controls_ = std::make_shared<FakeControls>();
  std::unique_ptr<EngineCore> core_;
  WatchedExecutor* executor_ = nullptr;
  std::unique_ptr<MaskMaker> masks_;
  int64_t num_constrained_ = 0;
  std::shared_ptr<Channel> channels_[3];
  int64_t next_id_ = 0;
  int64_t nan_token_ = -1;
  std::map<int64_t, Submission> submissions_;
  std::map<int64_t, std::weak_ptr<Channel>> channel_of_;
  std::map<int64_t, bool> aborted_;
  std::map<int64_t, bool> dropped_;
  Outputs outputs_;
};

NATIVE_TEST(random_schedules) {
  for (int64_t i = 0; i < options().schedules; ++i) {
    const uint64_t seed = options().seed + static_cast<uint64_t>(i);
    try {
      Simulation(seed).run();
    } catch (const std::exception& e) {
      throw std::runtime_error("--schedules 1 --seed " + std::to_string(seed) + ": " + e.what());
    }
  }
  using S = Simulation;
  std::cout << options().schedules << " schedules from seed " << options().seed << ": " << S::steps << " steps, "
            << S::preemptions << " preemptions, " << S::prefix_hits << " tokens from the prefix cache, " << S::compared
            << " sequences equal to those alone, " << S::refused << " refused, " << S::late_masks << " of " << S::masks
            << " masks late\n";
  if (options().schedules < 1000) return;
  require(S::late_masks > 0 && S::late_masks < S::masks, "masks were never, or always, late");
  require(S::preemptions > 0 && S::prefix_hits > 0 && S::compared > options().schedules, "hardly anything happened");
}

// Its K/V may hold the NaN for good: whoever comes with the same prompt computes it anew.
NATIVE_TEST(pages_behind_a_nan_are_not_served_again) {
  EngineConfig config;
  config.num_pages = 16;
  config.page_size = 4;
  config.vocab_size = 20;
  config.max_model_len = 40;
  config.max_num_seqs = 2;
  config.max_num_batched_tokens = 6;
  config.max_logit_rows = 2;
  const auto controls = std::make_shared<FakeControls>();
  EngineCore core(config, std::make_unique<FakeExecutor>(config, controls));
  const auto channel = std::make_shared<Channel>();
  Outputs outputs;
  const auto run = [&](int64_t id) {
    Submission submission;
    for (int64_t i = 0; i < 13; ++i) submission.prompt_token_ids.push_back(i);
    submission.params.max_tokens = 3;
    core.add(make_request(config, std::move(submission), channel, id));
    while (core.step()) core.check_integrity();
    collect(*channel, outputs);
    return outputs[{id, 0}].reason;
  };
  controls->nan_token = 2;
  require(run(1) == FinishReason::kError, "a NaN became tokens");
  controls->nan_token = -1;
  require(run(2) == FinishReason::kLength && core.stats().prefix_hit_tokens == 0, "a page behind the NaN was served");
  require(run(3) == FinishReason::kLength && core.stats().prefix_hit_tokens == 12, "good pages are not served");
}

}  // namespace
}  // namespace fastllm::test
