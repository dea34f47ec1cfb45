// Checks of operation arguments that come from outside (fastllm.ops). Backends trust their arguments; a model's shapes
// are fixed when it is built. Each function throws kInvalidRequest naming the operation, the tensor, what was expected
// and what was got. Everything that could make a backend read or write outside its memory is checked here, index by
// index; cost is therefore linear in ids, slots, pages and penalties (never in the size of activations).
#pragma once

#include "ops/ops.h"

namespace fastllm {

void check(const EmbedArgs& args);
void check(const RmsNormArgs& args, int64_t num_row_ids = 0);  // num_row_ids: length of row_ids
void check(const LinearArgs& args);
void check(const RopeTableArgs& args);
void check(const RopeAndStoreArgs& args, int64_t page_size);  // page_size: Backend::page_size()
void check(const PagedAttentionArgs& args, int64_t page_size);
void check(const GatedActivationArgs& args);
void check(const MoeRouteArgs& args);
void check(const MoeFfnArgs& args);
void check(const AddArgs& args);
void check(const SoftcapArgs& args);
void check(const SampleArgs& args);
void check(const CopyPagesArgs& args);

// Shapes of things that live longer than one call.
void check(const WeightDesc& desc);
void check(const WeightDesc& desc, const CodeSlice& slice);  // reads every code, scale and zero
void check(const KvSpec& spec);

}  // namespace fastllm
