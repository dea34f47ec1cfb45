// Host entries of the kernel files: choose an instance, launch. Arguments were checked; pointers are the device's.
#pragma once

#include "core/buffer.h"
#include "cuda/fl/host.h"
#include "ops/ops.h"

namespace fastllm::cuda {

// Partial results of attention: of one unit of positions for one query head each (attention/plan.h).
struct AttentionCells {
  float* o = nullptr;   // [count, D]
  float* ml = nullptr;  // [count, 2]
  int64_t count = 0;

  static AttentionCells take(Arena& arena, const OpLimits& limits);
};

// Memory that kernels need beside their arguments: planned from the limits, taken once.
struct Workspace {
  float* moe_hidden = nullptr;  // [T * k, F] activated outputs of the experts' first halves
  AttentionCells attention_cells;

  static Workspace take(Arena& arena, const OpLimits& limits);
};

// small/
void embed(fl::Stream& stream, const EmbedArgs& args);
void rms_norm(fl::Stream& stream, const RmsNormArgs& args);
void rope_table(fl::Stream& stream, const RopeTableArgs& args);
void rope_and_store(fl::Stream& stream, const RopeAndStoreArgs& args);
void gated_activation(fl::Stream& stream, const GatedActivationArgs& args);
void add(fl::Stream& stream, const AddArgs& args);
void softcap(fl::Stream& stream, const SoftcapArgs& args);
// attention/, gemm/, moe/
void paged_attention(fl::Stream& stream, const PagedAttentionArgs& args, const Workspace& workspace);
void linear(fl::Stream& stream, const LinearArgs& args, const Workspace& workspace);
void moe_route(fl::Stream& stream, const MoeRouteArgs& args);
void moe_ffn(fl::Stream& stream, const MoeFfnArgs& args, const Workspace& workspace);

}  // namespace fastllm::cuda
