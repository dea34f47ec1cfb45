#include "engine/device_step.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "core/buffer.h"
#include "core/checked.h"

namespace fastllm {

int64_t DeviceStep::bytes(const Backend& backend, const StepLimits& limits) {
  if (backend.shares_host_memory()) return 0;
  Arena plan;
  plan.take<int64_t>(limits.max_tokens);      // slots
  plan.take<int32_t>(limits.max_tokens);      // token_ids
  plan.take<int32_t>(limits.max_tokens);      // positions
  plan.take<int32_t>(limits.max_seqs + 1);    // query_start
  plan.take<int32_t>(limits.max_seqs);        // context_len
  plan.take<int32_t>(limits.max_logit_rows);  // logit_rows
  plan.take<int32_t>(limits.max_tokens);      // pooled_rows
  plan.take<int32_t>(checked_mul(limits.max_seqs, limits.max_pages_per_seq, "block table"));
  return plan.used();
}

DeviceStep::DeviceStep(Backend& backend, const StepLimits& limits)
    : backend_(backend), memory_(backend.allocate(bytes(backend, limits), "step", Contents::kUndefined)) {
  staging_.resize(static_cast<std::size_t>(memory_.size()));
}

DeviceStep::Arrays DeviceStep::upload(const Arrays& host) { return backend_.shares_host_memory() ? host : send(host); }

DeviceStep::Arrays DeviceStep::upload_decode(const Arrays& host, int64_t num_seqs, int64_t max_pages) {
  const StepView& step = host.view;
  const auto pad = [&]<class T>(std::vector<T>& to, const T* from, T filler) {
    to.assign(from, from + step.num_seqs);
    to.resize(static_cast<std::size_t>(num_seqs), filler);
  };
  pad(padded_.token_ids, step.token_ids, 0);
  pad(padded_.positions, step.positions, 0);
  pad(padded_.slots, step.slots, int64_t{-1});
  pad(padded_.context_len, step.context_len, 0);
  pad(padded_.logit_rows, host.logit_rows.data(), 0);
  padded_.query_start.resize(static_cast<std::size_t>(num_seqs + 1));
  std::iota(padded_.query_start.begin(), padded_.query_start.end(), 0);
  padded_.block_table.assign(static_cast<std::size_t>(num_seqs * max_pages), 0);
  for (int64_t s = 0; s < step.num_seqs; ++s) {
    std::copy_n(step.block_table + s * step.max_pages, step.max_pages, padded_.block_table.begin() + s * max_pages);
  }
  StepView view = step;
  view.num_tokens = view.num_seqs = num_seqs;
  view.max_pages = max_pages;
  view.max_context_len = max_pages * backend_.page_size();
  view.token_ids = padded_.token_ids.data();
  view.positions = padded_.positions.data();
  view.query_start = padded_.query_start.data();
  view.context_len = padded_.context_len.data();
  view.block_table = padded_.block_table.data();
  view.slots = padded_.slots.data();
  return send({view, padded_.logit_rows, {}});
}

DeviceStep::Arrays DeviceStep::send(const Arrays& host) {
  Arena arena({memory_.data(), staging_.size()});
  const auto place = [&]<class T>(const T* from, int64_t count) {
    T* to = arena.take<T>(count);
    std::byte* staged = staging_.data() + (reinterpret_cast<std::byte*>(to) - memory_.data());
    if (count > 0) std::memcpy(staged, from, static_cast<std::size_t>(count) * sizeof(T));
    return to;
  };
  const StepView& step = host.view;
  Arrays out = host;
  out.view.slots = place(step.slots, step.num_tokens);
  out.view.token_ids = place(step.token_ids, step.num_tokens);
  out.view.positions = place(step.positions, step.num_tokens);
  out.view.query_start = place(step.query_start, step.num_seqs + 1);
  out.view.context_len = place(step.context_len, step.num_seqs);
  out.logit_rows = {place(host.logit_rows.data(), std::ssize(host.logit_rows)), host.logit_rows.size()};
  out.pooled_rows = {place(host.pooled_rows.data(), std::ssize(host.pooled_rows)), host.pooled_rows.size()};
  out.view.block_table = place(step.block_table, step.num_seqs * step.max_pages);
  backend_.upload(memory_.data(), staging_.data(), arena.used());
  return out;
}

}  // namespace fastllm
