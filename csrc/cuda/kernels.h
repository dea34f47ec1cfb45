// Host entries of the kernel files: choose an instance, launch. Arguments were checked; pointers are the device's.
#pragma once

#include "core/buffer.h"
#include "cuda/fl/host.h"
#include "cuda/gemm/gemm.h"
#include "cuda/moe/moe.h"
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
  void* converted = nullptr;  // activations in 16 bits, [rows, K padded to 64], or as many bytes of integers
  int64_t converted_size = 0;
  ActGroup* act_groups = nullptr;  // of the integers
  GemmWorkspace gemm;
  // Experts, for passes of up to moe_tokens tokens.
  int64_t moe_tokens = 0;
  MoeSlots slots;
  float* moe_gate_up = nullptr;  // [slots, 2F]
  float* moe_down = nullptr;     // [slots, E]
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
// Sets x of the call to the rows in the form that its weight multiplies with.
void load_activations(fl::Stream& stream, const Mat& x, const Workspace& workspace, GemmCall& call);
void paged_attention(fl::Stream& stream, const PagedAttentionArgs& args, const Workspace& workspace);
void linear(fl::Stream& stream, const LinearArgs& args, const Workspace& workspace);
void moe_ffn(fl::Stream& stream, const MoeFfnArgs& args, const Workspace& workspace);

}  // namespace fastllm::cuda
