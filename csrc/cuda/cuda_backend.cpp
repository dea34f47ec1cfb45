#include "cuda/cuda_backend.h"

#include <algorithm>

#include "cuda/layout.h"

namespace fastllm::cuda {

CudaBackend::CudaBackend(std::string name, const fl::DeviceOptions& options)
    : name_(std::move(name)), device_(std::make_shared<fl::Device>(options)), stream_(*device_) {}

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
    stream_.synchronize();
  }
  return {std::move(owner), data, bytes};
}

void CudaBackend::upload(void* to, const void* from, int64_t bytes) {
  if (bytes == 0) return;
  const std::scoped_lock lock(copy_mutex_);
  stream_.upload(to, from, bytes);
  stream_.synchronize();
}

void CudaBackend::download(void* to, const void* from, int64_t bytes) {
  if (bytes == 0) return;
  const std::scoped_lock lock(copy_mutex_);
  stream_.download(to, from, bytes);
  stream_.synchronize();
}

int64_t CudaBackend::packed_bytes(const WeightDesc& desc) const {
  const int64_t rows = checked_mul(desc.n, desc.num_experts, "weight");
  return checked_mul(checked_mul(rows, row_pitch(desc), "weight"), size_of(dtype_of(desc.format)), "weight");
}

void CudaBackend::pack(const PackedWeight& to, const WeightSlice& slice) {
  with_float_dtype(dtype_of(to.desc.format), [&]<class To>(To) {
    with_float_dtype(slice.dtype, [&]<class From>(From) {
      const int64_t pitch = row_pitch(to.desc);
      std::vector<To> rows(static_cast<std::size_t>(slice.num_rows * pitch), To{});
      for (int64_t i = 0; i < slice.num_rows; ++i) {
        const From* from = static_cast<const From*>(slice.data) + i * slice.row_stride;
        To* row = rows.data() + i * pitch;
        for (int64_t k = 0; k < to.desc.k; ++k) row[k] = from_float<To>(to_float(from[k * slice.col_stride]));
      }
      const int64_t first = (slice.expert * to.desc.n + slice.row_begin) * pitch;
      upload(reinterpret_cast<To*>(to.data) + first, rows.data(), static_cast<int64_t>(rows.size() * sizeof(To)));
    });
  });
}

void CudaBackend::pack_codes(const PackedWeight&, const CodeSlice&) {
  fail(ErrorKind::kUnsupportedModel, name_, ": integer weights are not there yet");
}

int64_t CudaBackend::page_size() const { return kPageSize; }

int64_t CudaBackend::kv_page_bytes(const KvSpec& spec) const { return 2 * kv_part_size(spec) * size_of(spec.dtype); }

Workspace Workspace::take(Arena& arena, const OpLimits& limits) {
  Workspace w;
  const int64_t pairs = checked_mul(limits.max_tokens, limits.experts_per_token, "moe");
  w.moe_hidden = arena.take<float>(checked_mul(pairs, limits.moe_features, "moe"));
  w.attention_cells = AttentionCells::take(arena, limits);
  return w;
}

int64_t CudaBackend::scratch_bytes(const OpLimits& limits) const {
  Arena plan;
  Workspace::take(plan, limits);
  return plan.used();
}

void CudaBackend::reserve(const OpLimits& limits) {
  workspace_memory_ = fl::DeviceBuffer(*device_, scratch_bytes(limits), "workspace");
  Arena arena({workspace_memory_.data(), static_cast<std::size_t>(workspace_memory_.size())});
  workspace_ = Workspace::take(arena, limits);

  const int64_t num_logits = checked_mul(limits.max_logit_rows, limits.vocab_size, "logits");
  logits_ = Buffer(checked_mul(num_logits, size_of(DType::kF32), "logits"), "logits on the host");
  Arena plan;
  SampleScratch::take(plan, limits.vocab_size);
  sample_memory_ = Buffer(plan.used(), "sampling");
  Arena sampling({sample_memory_.data(), static_cast<std::size_t>(sample_memory_.size())});
  sample_scratch_ = SampleScratch::take(sampling, limits.vocab_size);
}

void CudaBackend::sample(const SampleArgs& args) {
  FASTLLM_CHECK(args.stride == args.vocab_size, "rows of logits lie apart");
  auto* logits = reinterpret_cast<float*>(logits_.data());
  download(logits, args.logits, args.num_rows * args.vocab_size * size_of(DType::kF32));
  for (int64_t r = 0; r < args.num_rows; ++r) {
    const std::span row(logits + r * args.vocab_size, static_cast<std::size_t>(args.vocab_size));
    args.results[r] = sample_row(row, args.rows[r], sample_scratch_);
  }
}

void CudaBackend::copy_pages(const CopyPagesArgs& args) {
  for (std::size_t i = 0; i < args.from.size(); ++i) {
    stream_.copy(args.kv.data + args.to[i] * args.kv.page_bytes, args.kv.data + args.from[i] * args.kv.page_bytes,
                 args.kv.page_bytes);
  }
}

}  // namespace fastllm::cuda
