#include "engine/params.h"

#include <algorithm>
#include <iomanip>
#include <sstream>
#include <unordered_set>

#include "core/checked.h"

namespace fastllm {
namespace {

constexpr bool is_inside(double x, const ParamRange& r) {
  // Written so that NaN fails.
  return (r.is_open ? r.min < x : r.min <= x) && x <= r.max;
}

void check_scalar(const char* name, double x, const ParamRange& r) {
  if (is_inside(x, r)) return;
  fail(ErrorKind::kInvalidRequest, name, " = ", x, " is not in ", r.is_open ? "(" : "[", r.min, ", ", r.max, "]");
}

void check_token_id(const char* name, int64_t id, int64_t vocab_size) {
  if (id >= 0 && id < vocab_size) return;
  fail(ErrorKind::kInvalidRequest, name, " contains ", id, ", the model's token ids are 0 to ", vocab_size - 1);
}

void check_count(const char* name, std::size_t count, int64_t max_items) {
  if (std::cmp_less_equal(count, max_items)) return;
  fail(ErrorKind::kInvalidRequest, name, " has ", count, " items, at most ", max_items, " are allowed");
}

void check_item_size(const char* name, std::size_t size, int64_t max_size, const char* unit) {
  if (size >= 1 && std::cmp_less_equal(size, max_size)) return;
  fail(ErrorKind::kInvalidRequest, name, " contains an item of ", size, " ", unit, ", 1 to ", max_size, " are allowed");
}

// One overload per type of parameter; visit_params() calls the one that fits.
struct Checker {
  const SamplingParams& params;
  int64_t vocab_size;

  template <class Field>
  void operator()(const char* name, Field SamplingParams::* member, const ParamRange& range, const char*) const {
    check_value(name, params.*member, range);
  }

  void check_value(const char*, bool, const ParamRange&) const {}
  void check_value(const char* name, int64_t x, const ParamRange& r) const {
    check_scalar(name, static_cast<double>(x), r);
  }
  void check_value(const char* name, double x, const ParamRange& r) const { check_scalar(name, x, r); }
  void check_value(const char* name, const std::vector<std::string>& x, const ParamRange& r) const {
    check_count(name, x.size(), r.max_items);
    for (const std::string& item : x) check_item_size(name, item.size(), r.max_item_size, "bytes");
  }
  void check_value(const char* name, const std::vector<int64_t>& x, const ParamRange& r) const {
    check_count(name, x.size(), r.max_items);
    for (const int64_t id : x) check_token_id(name, id, vocab_size);
  }
  void check_value(const char* name, const std::vector<std::vector<int64_t>>& x, const ParamRange& r) const {
    check_count(name, x.size(), r.max_items);
    for (const std::vector<int64_t>& item : x) {
      check_item_size(name, item.size(), r.max_item_size, "token ids");
      for (const int64_t id : item) check_token_id(name, id, vocab_size);
    }
  }
  void check_value(const char* name, const std::vector<std::pair<int64_t, double>>& x, const ParamRange& r) const {
    check_count(name, x.size(), r.max_items);
    for (const auto& [id, bias] : x) {
      check_token_id(name, id, vocab_size);
      check_scalar(name, bias, r);
    }
  }
  template <class T>
  void check_value(const char* name, const std::optional<T>& x, const ParamRange& r) const {
    if (x) check_value(name, *x, r);
  }
};

void check_bans_leave_a_token(const SamplingParams& p, int64_t vocab_size) {
  if (p.banned_token_ids.empty()) return;
  const std::unordered_set<int64_t> banned(p.banned_token_ids.begin(), p.banned_token_ids.end());
  const bool bans_all = p.allowed_token_ids
                            ? std::ranges::all_of(*p.allowed_token_ids, [&](int64_t id) { return banned.contains(id); })
                            : std::cmp_equal(banned.size(), vocab_size);
  if (bans_all) fail(ErrorKind::kInvalidRequest, "banned_token_ids leaves no token to generate");
}

struct TableBuilder {
  std::vector<ParamInfo>& table;

  template <class Field>
  void operator()(const char* name, Field SamplingParams::* member, const ParamRange& range, const char* help) const {
    ParamInfo info{.name = name, .type = "", .is_optional = false, .default_value = "", .range = range, .help = help};
    describe(SamplingParams{}.*member, info);
    table.push_back(std::move(info));
  }

  static void describe(bool x, ParamInfo& info) { set(info, "bool", x ? "True" : "False"); }
  static void describe(int64_t x, ParamInfo& info) { set(info, "int", std::to_string(x)); }
  static void describe(double x, ParamInfo& info) {
    std::ostringstream text;
    text << std::showpoint << std::setprecision(2) << x;
    set(info, "float", text.str());
  }
  static void describe(const std::vector<std::string>&, ParamInfo& info) { set(info, "list[str]", "[]"); }
  static void describe(const std::vector<int64_t>&, ParamInfo& info) { set(info, "list[int]", "[]"); }
  static void describe(const std::vector<std::vector<int64_t>>&, ParamInfo& info) {
    set(info, "list[list[int]]", "[]");
  }
  static void describe(const std::vector<std::pair<int64_t, double>>&, ParamInfo& info) {
    set(info, "dict[int, float]", "{}");
  }
  template <class T>
  static void describe(const std::optional<T>& x, ParamInfo& info) {
    describe(x.value_or(T{}), info);
    info.is_optional = true;
    if (!x) info.default_value = "None";
  }
  static void set(ParamInfo& info, const char* type, std::string default_value) {
    info.type = type;
    info.default_value = std::move(default_value);
  }
};

}  // namespace

void check(const SamplingParams& p, int64_t vocab_size) {
  visit_params(Checker{p, vocab_size});
  if (p.max_tokens && p.min_tokens > *p.max_tokens) {
    fail(ErrorKind::kInvalidRequest, "min_tokens = ", p.min_tokens, " is larger than max_tokens = ", *p.max_tokens);
  }
  if (p.allowed_token_ids && p.allowed_token_ids->empty()) {
    fail(ErrorKind::kInvalidRequest, "allowed_token_ids is empty; leave it out to allow every token");
  }
  check_bans_leave_a_token(p, vocab_size);
  if (!p.detokenize && !p.stop.empty()) {
    fail(ErrorKind::kInvalidRequest, "stop strings need detokenize = True; use stop_token_ids without it");
  }
}

std::vector<int32_t> checked_token_ids(const char* name, std::span<const int64_t> ids, int64_t vocab_size) {
  std::vector<int32_t> result;
  result.reserve(ids.size());
  for (const int64_t id : ids) {
    check_token_id(name, id, vocab_size);
    result.push_back(static_cast<int32_t>(id));
  }
  return result;
}

std::vector<ParamInfo> param_table() {
  std::vector<ParamInfo> table;
  visit_params(TableBuilder{table});
  return table;
}

}  // namespace fastllm
