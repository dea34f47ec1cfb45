#include "engine/device_step.h"

#include <cstring>

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

DeviceStep::Arrays DeviceStep::upload(const Step& step) {
  if (backend_.shares_host_memory()) return {step.view, step.logit_rows, step.pooled_rows};
  Arena arena({memory_.data(), staging_.size()});
  const auto place = [&]<class T>(const std::vector<T>& from) {
    T* to = arena.take<T>(static_cast<int64_t>(from.size()));
    std::byte* staged = staging_.data() + (reinterpret_cast<std::byte*>(to) - memory_.data());
    if (!from.empty()) std::memcpy(staged, from.data(), from.size() * sizeof(T));
    return to;
  };
  Arrays out{step.view, {}, {}};
  out.view.slots = place(step.slots);
  out.view.token_ids = place(step.token_ids);
  out.view.positions = place(step.positions);
  out.view.query_start = place(step.query_start);
  out.view.context_len = place(step.context_len);
  out.logit_rows = {place(step.logit_rows), step.logit_rows.size()};
  out.pooled_rows = {place(step.pooled_rows), step.pooled_rows.size()};
  out.view.block_table = place(step.block_table);
  backend_.upload(memory_.data(), staging_.data(), arena.used());
  return out;
}

}  // namespace fastllm
