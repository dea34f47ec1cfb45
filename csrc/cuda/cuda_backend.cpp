#include "cuda/cuda_backend.h"

#include <algorithm>
#include <cstring>

#include "cuda/gemm/pack_weights.h"
#include "cuda/layout.h"

namespace fastllm::cuda {

CudaBackend::CudaBackend(std::string name, const fl::DeviceOptions& options)
    : name_(std::move(name)),
      device_(std::make_shared<fl::Device>(options)),
      stream_(*device_),
      uploads_(*device_),
      sampler_(*device_) {}

void CudaBackend::synchronize() {
  stream_.synchronize();
  uploads_.clear();
}

void CudaBackend::wait() {
  const std::scoped_lock lock(copy_mutex_);
  synchronize();
}

DeviceMemory CudaBackend::allocate(int64_t bytes, const char* what, Contents contents) {
  struct Owner {
    std::shared_ptr<fl::Device> device;  // destroyed after the buffer
    fl::DeviceBuffer buffer;
  };
  auto owner = std::make_shared<Owner>(Owner{device_, {*device_, bytes, what}});
  std::byte* data = owner->buffer.data();
  if (contents == Contents::kZero) {
    const std::scoped_lock lock(copy_mutex_);
    stream_.fill(data, 0, bytes);
    synchronize();
  }
  return {std::move(owner), data, bytes};
}

void CudaBackend::upload(void* to, const void* from, int64_t bytes) {
  if (bytes == 0) return;
  const std::scoped_lock lock(copy_mutex_);
  uploads_.send(stream_, to, from, bytes);
}

void CudaBackend::download(void* to, const void* from, int64_t bytes) {
  if (bytes == 0) return;
  const std::scoped_lock lock(copy_mutex_);
  stream_.download(to, from, bytes);
  synchronize();
}

int64_t CudaBackend::packed_bytes(const WeightDesc& desc) const {
  if (has_codes(desc.format) && desc.act == ActMode::kF32) {
    fail(ErrorKind::kUnsupportedModel, name_,
         ": activation mode f32 is for processors; use bf16, or a15, which is nearly exact");
  }
  return checked_mul(TileLayout(desc).expert_bytes, desc.num_experts, "weight");
}

// Rows go to the device as they are, in one piece, and are put into their places there.
void CudaBackend::pack(const PackedWeight& to, const WeightSlice& slice) {
  const int64_t element = size_of(slice.dtype);
  const int64_t count = checked_mul(slice.num_rows, to.desc.k, "rows");
  if (count == 0) return;
  std::vector<std::byte> gathered;
  const void* rows = slice.data;
  if (slice.col_stride != 1 || slice.row_stride != to.desc.k) {
    gathered.resize(static_cast<std::size_t>(count * element));
    for (int64_t i = 0; i < count; ++i) {
      const int64_t from = i / to.desc.k * slice.row_stride + i % to.desc.k * slice.col_stride;
      std::memcpy(gathered.data() + i * element, static_cast<const std::byte*>(slice.data) + from * element,
                  static_cast<std::size_t>(element));
    }
    rows = gathered.data();
  }
  const fl::DeviceBuffer staged(*device_, count * element, "rows of a weight");
  const std::scoped_lock lock(copy_mutex_);
  stream_.upload(staged.data(), rows, staged.size());
  pack_values(stream_, to, slice.expert, slice.row_begin, slice.num_rows, staged.data(), slice.dtype);
  synchronize();
}

void CudaBackend::pack_codes(const PackedWeight& to, const CodeSlice& slice) {
  const int64_t num_codes = checked_mul(slice.num_rows, to.desc.k, "rows");
  if (num_codes == 0) return;
  const int64_t num_scales = slice.num_rows * to.desc.groups();
  const fl::DeviceBuffer codes(*device_, num_codes, "codes of a weight");
  const fl::DeviceBuffer scales(*device_, num_scales * size_of(DType::kF32), "scales of a weight");
  const fl::DeviceBuffer zeros(*device_, num_scales, "zeros of a weight");
  const std::scoped_lock lock(copy_mutex_);
  stream_.upload(codes.data(), slice.codes, codes.size());
  stream_.upload(scales.data(), slice.scales, scales.size());
  if (to.desc.has_zeros) stream_.upload(zeros.data(), slice.zeros, zeros.size());
  cuda::pack_codes(stream_, to, slice.expert, slice.row_begin, slice.num_rows,
                   reinterpret_cast<const uint8_t*>(codes.data()), reinterpret_cast<const float*>(scales.data()),
                   to.desc.has_zeros ? reinterpret_cast<const uint8_t*>(zeros.data()) : nullptr);
  synchronize();
}

int64_t CudaBackend::page_size() const { return kPageSize; }

int64_t CudaBackend::kv_page_bytes(const KvSpec& spec) const { return page_end(spec); }

Workspace Workspace::take(Arena& arena, const OpLimits& limits) {
  // More tokens go through the experts in passes: their intermediate results are k times as many.
  constexpr int64_t kMaxMoeTokens = 1024;
  Workspace w;
  const bool has_experts = limits.num_experts > 0;
  w.moe_tokens = has_experts ? std::min(limits.max_tokens, kMaxMoeTokens) : 0;
  const int64_t slots = checked_mul(w.moe_tokens, limits.experts_per_token, "moe");
  const int64_t rows = std::max({limits.max_tokens, limits.max_logit_rows, slots});
  w.converted_size = checked_mul(rows, round_up(limits.max_features, kChunkCols), "converted activations");
  w.converted = arena.take<uint16_t>(w.converted_size);
  w.act_groups = arena.take<ActGroup>(checked_mul(rows, ceil_div(limits.max_features, 32), "groups of activations"));

  w.gemm.partials_size = gemm_partials(rows, std::max(limits.max_features, limits.vocab_size));
  w.gemm.partials = arena.take<float>(w.gemm.partials_size);
  w.gemm.num_tickets = gemm_tickets(rows);
  w.gemm.tickets = arena.take<uint32_t>(w.gemm.num_tickets);

  w.slots.token_of = arena.take<int32_t>(slots);
  w.slots.slot_of = arena.take<int32_t>(slots);
  w.slots.tiles = arena.take<RowTile>(slots);
  w.slots.num_tiles = arena.take<int32_t>(1);
  w.moe_gate_up = arena.take<float>(checked_mul(slots, 2 * limits.moe_features, "moe"));
  w.moe_down = arena.take<float>(checked_mul(slots, limits.max_features, "moe"));
  w.attention_cells = AttentionCells::take(arena, limits);
  return w;
}

int64_t CudaBackend::scratch_bytes(const OpLimits& limits) const {
  Arena plan;
  Workspace::take(plan, limits);
  return plan.used() + Sampler::bytes(limits) + (has_graphs() ? StepGraphs::bytes(limits) : 0);
}

fl::Graph CudaBackend::captured(const std::function<void()>& work) {
  stream_.begin_capture();
  try {
    work();
  } catch (...) {
    stream_.abort_capture();
    throw;
  }
  return stream_.end_capture();
}

void CudaBackend::record(uint64_t key, const std::function<void()>& work) {
  if (graphs_.find(key) != nullptr) return;
  fl::Graph graph = captured(work);
  if (graphs_.is_full(graph.num_launches())) wait();  // what is dropped may be running
  graphs_.keep(key, std::move(graph));
}

void CudaBackend::run(uint64_t key, const std::function<void()>& work) {
  record(key, work);
  stream_.run(*graphs_.find(key));
}

void CudaBackend::reserve(const OpLimits& limits) {
  wait();  // for what uses the memory that there is
  graphs_.reserve(limits);
  Arena plan;
  Workspace::take(plan, limits);
  workspace_memory_ = fl::DeviceBuffer(*device_, plan.used(), "workspace");
  Arena arena({workspace_memory_.data(), static_cast<std::size_t>(workspace_memory_.size())});
  workspace_ = Workspace::take(arena, limits);
  stream_.fill(workspace_.gemm.tickets, 0, workspace_.gemm.num_tickets * static_cast<int64_t>(sizeof(uint32_t)));
  wait();

  sampler_.reserve(limits);
}

void CudaBackend::copy_pages(const CopyPagesArgs& args) {
  for (std::size_t i = 0; i < args.from.size(); ++i) {
    stream_.copy(args.kv.data + args.to[i] * args.kv.page_bytes, args.kv.data + args.from[i] * args.kv.page_bytes,
                 args.kv.page_bytes);
  }
}

}  // namespace fastllm::cuda
