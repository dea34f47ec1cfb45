// EngineConfig, Channel, Engine, sampling parameters from a dict and their table, and an engine without a model for
// tests.
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/variant.h>
#include <nanobind/stl/vector.h>

#include <atomic>
#include <cstring>
#include <utility>

#include "bindings/bindings.h"
#include "bindings/gil.h"
#include "engine/engine.h"
#include "engine/fake_executor.h"
#include "engine/params.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace fastllm {
namespace {

using BiasList = std::vector<std::pair<int64_t, double>>;

// What a parameter of this type is given as.
template <class T>
const char* expected() {
  if constexpr (std::is_same_v<T, bool>) return "True or False";
  if constexpr (std::is_same_v<T, int64_t>) return "an integer of at most 64 bits";
  if constexpr (std::is_same_v<T, double>) return "a number";
  if constexpr (std::is_same_v<T, std::optional<int64_t>>) return "an integer of at most 64 bits, or None";
  if constexpr (std::is_same_v<T, std::vector<std::string>>) return "a list of strings";
  if constexpr (std::is_same_v<T, BiasList>) return "a dict of token id -> number";
  return "a list of token ids";
}

template <class T>
T cast_param(const char* name, nb::handle value) {
  if constexpr (std::is_same_v<T, BiasList>) {
    if (!nb::isinstance<nb::dict>(value)) {
      fail(ErrorKind::kInvalidRequest, name, " must be ", expected<T>(), ", not ", nb::type_name(value.type()).c_str());
    }
    BiasList list;
    for (const auto& [token, bias] : nb::cast<nb::dict>(value)) {
      list.emplace_back(cast_param<int64_t>(name, token), cast_param<double>(name, bias));
    }
    return list;
  } else {
    // A bool is an int in Python; here it is a mistake.
    const bool is_misplaced_bool = !std::is_same_v<T, bool> && PyBool_Check(value.ptr());
    T out{};
    if (is_misplaced_bool || !nb::try_cast<T>(value, out)) {
      fail(ErrorKind::kInvalidRequest, name, " must be ", expected<T>(), ", not this ",
           nb::type_name(value.type()).c_str());
    }
    return out;
  }
}

SamplingParams params_from(const nb::dict& values) {
  SamplingParams params;
  std::size_t taken = 0;
  std::string known;
  visit_params([&]<class Member>(const char* name, Member SamplingParams::* member, const ParamRange&, const char*) {
    known += known.empty() ? name : std::string(", ") + name;
    if (!values.contains(name)) return;
    ++taken;
    params.*member = cast_param<Member>(name, values[name]);
  });
  if (taken != values.size()) {
    fail(ErrorKind::kInvalidRequest, "a sampling parameter is not known; known are ", known);
  }
  return params;
}

// 4-byte words of a mask, little-endian as this machine; the rest of a last word is zeros.
std::vector<uint32_t> mask_words(const nb::bytes& mask) {
  std::vector<uint32_t> words((mask.size() + 3) / 4, 0);
  if (mask.size() > 0) std::memcpy(words.data(), mask.c_str(), mask.size());
  return words;
}

Pooling pooling_from(const std::string& name) {
  if (name.empty()) return Pooling::kNone;
  if (name == "last") return Pooling::kLast;
  if (name == "mean") return Pooling::kMean;
  fail(ErrorKind::kInvalidRequest, "pooling must be last or mean");
}

nb::object error_of(const RequestDelta& delta) {
  if (delta.finish_reason != FinishReason::kError) return nb::none();
  const char* cls = "InternalError";
  switch (delta.error_kind) {
    case ErrorKind::kInvalidRequest:
      cls = "InvalidRequestError";
      break;
    case ErrorKind::kCheckpoint:
      cls = "CheckpointError";
      break;
    case ErrorKind::kUnsupportedModel:
      cls = "UnsupportedModelError";
      break;
    case ErrorKind::kOutOfMemory:
      cls = "OutOfMemoryError";
      break;
    case ErrorKind::kDevice:
      cls = "DeviceError";
      break;
    case ErrorKind::kQueueFull:
      cls = "QueueFullError";
      break;
    case ErrorKind::kEngineClosed:
      cls = "EngineClosedError";
      break;
    case ErrorKind::kInternal:
      break;
  }
  return nb::module_::import_("fastllm.errors").attr(cls)(delta.error_message);
}

nb::dict stats_of(const EngineStats& s) {
  nb::dict out;
  out["num_running"] = s.num_running;
  out["num_waiting"] = s.num_waiting;
  out["num_pages"] = s.num_pages;
  out["num_pages_free"] = s.num_pages_free;
  out["num_pages_cached"] = s.num_pages_cached;
  out["num_pages_referenced"] = s.num_pages_referenced;
  out["num_steps"] = s.num_steps;
  out["num_failed_steps"] = s.num_failed_steps;
  out["num_failed_steps_in_a_row"] = s.num_failed_steps_in_a_row;
  out["last_step_s"] = s.last_step_s;
  out["num_requests"] = s.num_requests;
  out["num_requests_finished"] = s.num_requests_finished;
  out["num_preemptions"] = s.num_preemptions;
  out["prefix_query_tokens"] = s.prefix_query_tokens;
  out["prefix_hit_tokens"] = s.prefix_hit_tokens;
  out["num_prompt_tokens"] = s.num_prompt_tokens;
  out["num_generated_tokens"] = s.num_generated_tokens;
  out["num_nonfinite_rows"] = s.num_nonfinite_rows;
  out["num_masks"] = s.num_masks;
  out["num_late_masks"] = s.num_late_masks;
  out["charged_s"] = s.charged_s;
  out["aborted_s"] = s.aborted_s;
  out["kv_page_s"] = s.kv_page_s;
  out["schedule_s"] = s.schedule_s;
  out["forward_s"] = s.forward_s;
  out["sample_s"] = s.sample_s;
  out["hand_over_s"] = s.hand_over_s;
  out["read_bytes"] = s.read_bytes + (s.experts ? s.experts->read_bytes : 0);
  return out;
}

nb::list table_of_params() {
  nb::list table;
  for (const ParamInfo& info : param_table()) {
    nb::dict row;
    row["name"] = info.name;
    row["type"] = info.type;
    row["is_optional"] = info.is_optional;
    row["default"] = info.default_value;
    row["min"] = info.range.min;
    row["max"] = info.range.max;
    row["is_open"] = info.range.is_open;
    row["is_token_id"] = info.range.is_token_id;
    row["max_items"] = info.range.max_items;
    row["max_item_size"] = info.range.max_item_size;
    row["help"] = info.help;
    table.append(row);
  }
  return table;
}

void bind_fake_engine(nb::module_& m) {
  const auto number = [](std::atomic<int64_t> FakeControls::* member) {
    return std::pair([member](const FakeControls& self) { return (self.*member).load(); },
                     [member](FakeControls& self, int64_t value) { (self.*member).store(value); });
  };
  nb::class_<FakeControls> controls(m, "FakeControls", "Steers the executor of make_fake_engine().");
  const auto add = [&](const char* name, std::atomic<int64_t> FakeControls::* member) {
    const auto [get, set] = number(member);
    controls.def_prop_rw(name, get, set);
  };
  add("fail_in", &FakeControls::fail_in);
  add("delay_us", &FakeControls::delay_us);
  add("nan_token", &FakeControls::nan_token);
  add("num_bad_reads", &FakeControls::num_bad_reads);
  add("num_steps", &FakeControls::num_steps);
  m.def(
      "make_fake_engine",
      [](EngineConfig config, int64_t page_size, int64_t vocab_size) {
        config.page_size = page_size;
        config.vocab_size = vocab_size;
        config.hidden_size = 1;
        check(config);
        auto fake_controls = std::make_shared<FakeControls>();
        auto executor = std::make_unique<FakeExecutor>(config, fake_controls);
        return std::pair(std::make_unique<Engine>(config, std::move(executor)), std::move(fake_controls));
      },
      "config"_a, nb::kw_only(), "page_size"_a, "vocab_size"_a,
      "For tests: an engine whose next token is a hash of all tokens before, and the controls of its executor.");
}

void bind_outputs(nb::module_& m) {
  nb::class_<TokenLogprobs>(m, "TokenLogprobs")
      .def_ro("token", &TokenLogprobs::token)
      .def_ro("logprob", &TokenLogprobs::logprob)
      .def_ro("rank", &TokenLogprobs::rank)
      .def_prop_ro("top", [](const TokenLogprobs& self) {
        std::vector<std::pair<int32_t, float>> top;
        for (const TopLogprob& t : self.top) top.emplace_back(t.token, t.logprob);
        return top;
      });
  nb::class_<RequestMetrics>(m, "RequestMetrics")
      .def_ro("arrival_s", &RequestMetrics::arrival_s)
      .def_ro("first_scheduled_s", &RequestMetrics::first_scheduled_s)
      .def_ro("first_token_s", &RequestMetrics::first_token_s)
      .def_ro("last_token_s", &RequestMetrics::last_token_s)
      .def_ro("num_prompt_tokens", &RequestMetrics::num_prompt_tokens)
      .def_ro("num_cached_tokens", &RequestMetrics::num_cached_tokens)
      .def_ro("num_generated_tokens", &RequestMetrics::num_generated_tokens)
      .def_ro("num_preemptions", &RequestMetrics::num_preemptions)
      .def_ro("device_s", &RequestMetrics::device_s)
      .def_ro("kv_page_s", &RequestMetrics::kv_page_s);
  nb::class_<RequestDelta>(m, "RequestDelta")
      .def_ro("request_id", &RequestDelta::request_id)
      .def_ro("index", &RequestDelta::index)
      .def_ro("token_ids", &RequestDelta::token_ids)
      .def_ro("text", &RequestDelta::text)
      .def_ro("logprobs", &RequestDelta::logprobs)
      .def_ro("prompt_logprobs", &RequestDelta::prompt_logprobs)
      .def_ro("metrics", &RequestDelta::metrics)
      .def_prop_ro(
          "embedding",
          [](const RequestDelta& self) {
            return nb::bytes(self.embedding.data(), self.embedding.size() * sizeof(float));
          },
          "float32 in the machine's byte order; empty but for the last delta of an embedding")
      .def_prop_ro("finish_reason",
                   [](const RequestDelta& self) -> std::optional<std::string> {
                     if (self.finish_reason == FinishReason::kNone) return std::nullopt;
                     return name_of(self.finish_reason);
                   })
      .def_prop_ro("stop_reason",
                   [](const RequestDelta& self) -> nb::object {
                     if (const auto* token = std::get_if<int32_t>(&self.stop_reason)) return nb::cast(*token);
                     if (const auto* text = std::get_if<std::string>(&self.stop_reason)) return nb::cast(*text);
                     return nb::none();
                   })
      .def_prop_ro("error", &error_of);
}

}  // namespace

void bind_engine(nb::module_& m) {
  using Release = nb::call_guard<GilRelease>;
  bind_outputs(m);
  bind_fake_engine(m);
  m.def("sampling_param_table", &table_of_params,
        "Each sampling parameter: name, type, default (as a Python literal), range, limits of lists, help.");
  nb::class_<EngineConfig>(m, "EngineConfig")
      .def(
          "__init__",
          [](EngineConfig* self, int64_t num_pages, int64_t max_model_len, int64_t max_num_seqs,
             int64_t max_num_batched_tokens, int64_t max_logit_rows, int64_t max_queue, bool enable_prefix_caching,
             bool static_batching, uint64_t seed, const std::vector<int32_t>& eos_ids,
             const std::shared_ptr<ByteTable>& byte_table) {
            EngineConfig config;
            config.num_pages = num_pages;
            config.max_model_len = max_model_len;
            config.max_num_seqs = max_num_seqs;
            config.max_num_batched_tokens = max_num_batched_tokens;
            config.max_logit_rows = max_logit_rows;
            config.max_queue = max_queue;
            config.enable_prefix_caching = enable_prefix_caching;
            config.static_batching = static_batching;
            config.seed = seed;
            config.eos_ids = eos_ids;
            config.byte_table = byte_table;
            new (self) EngineConfig(std::move(config));
          },
          nb::kw_only(), "num_pages"_a, "max_model_len"_a, "max_num_seqs"_a, "max_num_batched_tokens"_a,
          "max_logit_rows"_a, "max_queue"_a, "enable_prefix_caching"_a, "static_batching"_a = false, "seed"_a,
          "eos_ids"_a, "byte_table"_a.none());
  nb::class_<Channel>(m, "Channel", "Where the results of requests go; see Engine.open_channel().")
      .def("poll", &Channel::poll, "timeout_s"_a, Release(),
           "Takes all new results, at most one per sequence; waits up to timeout_s for one.")
      .def_prop_ro("is_closed", &Channel::is_closed);
  nb::class_<Engine>(m, "Engine", "A running engine; made by Model.start().")
      .def("open_channel", &Engine::open_channel)
      .def(
          "submit",
          [](Engine& self, std::vector<int64_t> prompt_token_ids, const nb::dict& params,
             const std::shared_ptr<Channel>& channel, int64_t priority, std::string cache_salt,
             const std::string& pooling, int64_t mask_key, const std::optional<nb::bytes>& first_mask) {
            Submission submission{std::move(prompt_token_ids), params_from(params), pooling_from(pooling), priority,
                                  std::move(cache_salt),       std::nullopt};
            if (first_mask) submission.masks = MaskSource{mask_key, mask_words(*first_mask)};
            const GilRelease release;
            return self.submit(std::move(submission), channel);
          },
          "prompt_token_ids"_a, "params"_a, "channel"_a, "priority"_a = 0, "cache_salt"_a = "", "pooling"_a = "",
          "mask_key"_a = 0, "first_mask"_a = nb::none(),
          "With pooling last or mean nothing is generated: the result is the prompt's embedding.")
      .def(
          "poll_mask_tasks",
          [](Engine& self, double timeout_s) {
            std::vector<MaskTask> tasks;
            {
              const GilRelease release;
              tasks = self.poll_mask_tasks(timeout_s);
            }
            std::vector<std::tuple<int64_t, int64_t, int32_t, int32_t>> out;
            for (const MaskTask& t : tasks) out.emplace_back(t.key, t.request_id, t.index, t.token);
            return out;
          },
          "timeout_s"_a,
          "Waits for (mask_key, request_id, index, token): the mask after this token is wanted. Token -1: the request "
          "with this key has ended.")
      .def(
          "reply_masks",
          [](Engine& self, const std::vector<std::tuple<int64_t, int32_t, std::optional<nb::bytes>, std::string>>& in) {
            std::vector<MaskReply> replies;
            for (const auto& [request_id, index, mask, error] : in) {
              replies.push_back({request_id, index, mask ? mask_words(*mask) : std::vector<uint32_t>{}, error});
            }
            const GilRelease release;
            self.reply_masks(std::move(replies));
          },
          "replies"_a,
          "(request_id, index, mask, error): the mask, as bytes with the bit i % 8 of byte i // 8 set if token i is "
          "allowed. None: the sequence ends, because the grammar is complete or with this error.")
      .def("abort", &Engine::abort, "request_id"_a, Release())
      .def("stats",
           [](const Engine& self) {
             EngineStats stats;
             {
               const GilRelease release;
               stats = self.stats();
             }
             return stats_of(stats);
           })
      .def(
          "expert_use",
          [](const Engine& self) {
            EngineStats stats;
            {
              const GilRelease release;
              stats = self.stats();
            }
            if (!stats.experts) return nb::bytes("");
            const std::vector<ExpertUse>& use = stats.experts->use;
            return nb::bytes(reinterpret_cast<const char*>(use.data()), use.size() * sizeof(ExpertUse));
          },
          "[layers, experts, 2] int64 in the machine's byte order: rows that chose the expert, and times that its "
          "weights were read. Empty for a model without experts.")
      .def("close", &Engine::close, Release())
      .def_prop_ro("is_closed", &Engine::is_closed);
}

}  // namespace fastllm
