// Mixture of experts: routing, and the products of each token with the experts chosen for it.
//
// (token, expert) pairs are sorted by expert; the rows of one expert form groups of up to 96 and are multiplied
// together. Experts without tokens have no group and cost nothing. In the second product the task that owns a block of
// output columns walks the experts in ascending order and adds weight * result into y: a fixed order, and no two tasks
// share an output.
#include <algorithm>
#include <cmath>

#include "core/checked.h"
#include "cpu/cpu_backend.h"
#include "cpu/linear.h"

namespace fastllm::cpu {
namespace {

// One token. In double and on the baseline: a hundred numbers, and ties must not depend on the level.
void route_token(const MoeRouteArgs& args, int64_t t) {
  const int64_t num_experts = args.logits.cols;
  const float* logits = args.logits.row<float>(t);
  int32_t* experts = args.experts + t * args.top_k;
  float* weights = args.weights + t * args.top_k;

  // A NaN would compare as smaller than nothing; it counts as the smallest and shows in the weights instead.
  const auto key = [&](int64_t e) { return std::isnan(logits[e]) ? -HUGE_VALF : logits[e]; };
  for (int64_t i = 0; i < args.top_k; ++i) {
    int64_t best = -1;
    for (int64_t e = 0; e < num_experts; ++e) {
      // Chosen so far: everything that comes before the last choice in (descending key, ascending index).
      if (i > 0) {
        const int64_t last = experts[i - 1];
        if (key(e) > key(last) || (key(e) == key(last) && e <= last)) continue;
      }
      if (best < 0 || key(e) > key(best)) best = e;
    }
    experts[i] = static_cast<int32_t>(best);
  }

  const double top = logits[experts[0]];
  const auto score = [&](int64_t e) {
    const double logit = logits[e];
    return args.score == RouteScore::kSigmoid ? 1.0 / (1.0 + std::exp(-logit)) : std::exp(logit - top);
  };
  double sum = 1.0;
  if (args.score == RouteScore::kSoftmax) {
    sum = 0.0;
    for (int64_t e = 0; e < num_experts; ++e) sum += score(e);
  } else if (args.score == RouteScore::kSoftmaxOfTopK) {
    sum = 0.0;
    for (int64_t i = 0; i < args.top_k; ++i) sum += score(experts[i]);
  }
  double chosen = 0.0;
  for (int64_t i = 0; i < args.top_k; ++i) chosen += score(experts[i]) / sum;
  for (int64_t i = 0; i < args.top_k; ++i) {
    weights[i] = static_cast<float>(score(experts[i]) / sum / (args.renormalize ? chosen : 1.0) * args.weight_scale);
  }
}

}  // namespace

void CpuBackend::moe_route(const MoeRouteArgs& args) {
  pool_.parallel_for(args.logits.rows, 16, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) route_token(args, t);
  });
}

void CpuBackend::moe_ffn(const MoeFfnArgs& args) {
  if (args.x.rows == 0) return;
  check_packed("moe_ffn", Matrix(*args.gate_up, kernels_), scratch_.packed_row_bytes);
  check_packed("moe_ffn", Matrix(*args.down, kernels_), scratch_.packed_ffn_row_bytes);
  const int64_t tokens_per_pass = scratch_.moe_pairs / args.top_k;
  FASTLLM_CHECK(tokens_per_pass > 0, "moe_ffn: top_k = ", args.top_k, " is larger than reserve() planned for");
  for (int64_t first = 0; first < args.x.rows; first += tokens_per_pass) {
    moe_pass(args, first, std::min(tokens_per_pass, args.x.rows - first));
  }
}

// Counting sort. Fills pair_token (relative to token_begin) and pair_weight; returns the groups.
std::span<const RowGroup> CpuBackend::sort_by_expert(const MoeFfnArgs& args, int64_t token_begin, int64_t num_tokens) {
  const int64_t num_experts = args.gate_up->desc.num_experts;
  const int64_t num_pairs = num_tokens * args.top_k;
  const int32_t* experts = args.experts + token_begin * args.top_k;
  const float* weights = args.weights + token_begin * args.top_k;
  int64_t* start = scratch_.expert_start;
  std::fill_n(start, num_experts + 1, 0);
  for (int64_t i = 0; i < num_pairs; ++i) ++start[experts[i] + 1];

  std::size_t num_groups = 0;
  for (int64_t e = 0; e < num_experts; ++e) {
    const int64_t count = start[e + 1];
    start[e + 1] += start[e];
    if (args.use != nullptr && count > 0) {
      args.use[e].num_tokens += count;
      ++args.use[e].num_reads;
    }
    const int64_t parts = ceil_div(count, kGroupRows);
    for (int64_t p = 0; p < parts; ++p) {
      const int64_t begin = count * p / parts;
      scratch_.groups[num_groups++] = {e, start[e] + begin, count * (p + 1) / parts - begin};
    }
  }
  for (int64_t i = 0; i < num_pairs; ++i) {
    const int64_t at = start[experts[i]]++;
    scratch_.pair_token[at] = static_cast<int32_t>(i / args.top_k);
    scratch_.pair_weight[at] = weights[i];
  }
  return {scratch_.groups, num_groups};
}

void CpuBackend::moe_pass(const MoeFfnArgs& args, int64_t token_begin, int64_t num_tokens) {
  const std::span<const RowGroup> groups = sort_by_expert(args, token_begin, num_tokens);
  const Matrix gate_up(*args.gate_up, kernels_);
  const Matrix matrix(*args.down, kernels_);
  pack_rows(gate_up, {args.x.row<float>(token_begin), args.x.stride, scratch_.pair_token}, groups);
  multiply_gated(gate_up, args.gate_up_bias, args.activation, matrix, groups);

  for (int64_t t = token_begin; t < token_begin + num_tokens; ++t) std::fill_n(args.y.row<float>(t), args.y.cols, 0.0f);
  const int64_t num_panels = matrix.layout.num_panels;
  const int64_t panels = panels_per_task(num_panels, 1, num_threads());
  pool_.parallel_for(ceil_div(num_panels, panels), 1, [&](int64_t unit, int64_t, int) {
    const int64_t first = unit * panels;
    const int64_t column = first * kPanelRows;
    for (const RowGroup& group : groups) {
      LinearJob job = matrix.job(group.expert, first, std::min(first + panels, num_panels));
      job.packed = scratch_.packed_ffn + group.begin * matrix.row_bytes;
      job.num_rows = group.num_rows;
      job.bias = args.down_bias != nullptr ? args.down_bias + group.expert * args.y.cols + column : nullptr;
      job.y = args.y.row<float>(token_begin) + column;
      job.y_stride = args.y.stride;
      job.row_weights = scratch_.pair_weight + group.begin;
      job.row_ids = scratch_.pair_token + group.begin;
      matrix.entry.run(job);
    }
  });
}

}  // namespace fastllm::cpu
