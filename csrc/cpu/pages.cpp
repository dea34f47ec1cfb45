// Where the bytes of K/V lie: the layout of a page, writing tokens into pages, copying them.
#include <algorithm>
#include <cstring>

#include "core/checked.h"
#include "cpu/cpu_backend.h"

namespace fastllm::cpu {
namespace {

KvElem kv_elem_of(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return KvElem::kF32;
    case DType::kBF16:
      return KvElem::kBF16;
    case DType::kF16:
      return KvElem::kF16;
    case DType::kI8:
      return KvElem::kI8;
    case DType::kE4M3:
      fail(ErrorKind::kUnsupportedModel, "cpu: a KV cache of fp8 is for CUDA; use int8, which takes the same memory");
    case DType::kI32:
    case DType::kI64:
    case DType::kU8:
      break;
  }
  fail(ErrorKind::kInternal, "cpu: no KV cache of ", name_of(dtype));
}

constexpr int64_t kCacheLine = 64;
static_assert(kScaleDims == kKvScaleDims);

}  // namespace

PageLayout::PageLayout(const KvSpec& spec) : elem(kv_elem_of(spec.dtype)) {
  const bool has_scales = elem == KvElem::kI8;
  const int64_t v_blocks = kPageTokens / 2 * ceil_div(spec.head_dim, kLanes);
  k_scales = ceil_div(spec.head_dim, 2) * pair_block_bytes(elem);
  v = k_scales + (has_scales ? ceil_div(spec.head_dim, kScaleDims) * kScaleBytes : 0);
  v_scales = checked_add(v, checked_mul(v_blocks, pair_block_bytes(elem), "KV page"), "KV page");
  head_bytes = round_up(v_scales + (has_scales ? kScaleBytes : 0), kCacheLine);
  page_bytes = checked_mul(spec.num_kv_heads, head_bytes, "KV page");
}

int64_t CpuBackend::kv_page_bytes(const KvSpec& spec) const { return PageLayout(spec).page_bytes; }

void CpuBackend::rope_and_store(const RopeAndStoreArgs& args) {
  const int64_t head_dim = args.kv.spec.head_dim;
  const PageLayout layout(args.kv.spec);
  const ElementwiseKernels& kernels = *kernels_.elementwise;
  const int64_t num_kv_heads = args.kv.spec.num_kv_heads;
  const int64_t q_dims = args.q.cols / num_kv_heads;  // of the query heads that share a kv head
  const auto do_head = [&](int64_t t, int64_t g) {
    const float* cos = args.cos + t * args.num_freqs;
    const float* sin = args.sin + t * args.num_freqs;
    float* q = args.q.row<float>(t) + g * q_dims;
    for (int64_t d = 0; d < q_dims; d += head_dim) kernels.rotate(q + d, cos, sin, args.num_freqs);
    float* k = args.k.row<float>(t) + g * head_dim;
    const float* v = args.v.row<float>(t) + g * head_dim;
    kernels.rotate(k, cos, sin, args.num_freqs);
    std::byte* head = args.kv.data + args.slots[t] / kPageTokens * args.kv.page_bytes + g * layout.head_bytes;
    kernels.store_kv[static_cast<int>(layout.elem)](
        {head, head + layout.v, head + layout.k_scales, head + layout.v_scales, args.slots[t] % kPageTokens}, k, v,
        head_dim);
  };
  // A kv head of a page's worth of consecutive tokens per task: a part of a page that one thread writes, in its first
  // cache. Few tokens, as of decoding sequences, one by one: each writes to lines that no cache has.
  const int64_t tokens_per_task = args.q.rows >= kPageTokens * num_threads() ? kPageTokens : 1;
  const int64_t num_blocks = ceil_div(args.q.rows, tokens_per_task);
  const int64_t grain = tokens_per_task == 1 ? 2 : 1;
  pool_.parallel_for(num_blocks * num_kv_heads, grain, [&](int64_t begin, int64_t end, int) {
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit / num_kv_heads * tokens_per_task;
      const int64_t last = std::min(first + tokens_per_task, args.q.rows);
      for (int64_t t = first; t < last; ++t) do_head(t, unit % num_kv_heads);
    }
  });
}

void CpuBackend::copy_pages(const CopyPagesArgs& args) {
  // In order, on one thread: a page may be both a source and a later destination.
  for (std::size_t i = 0; i < args.from.size(); ++i) {
    if (args.from[i] == args.to[i]) continue;
    std::memcpy(args.kv.data + args.to[i] * args.kv.page_bytes, args.kv.data + args.from[i] * args.kv.page_bytes,
                static_cast<std::size_t>(args.kv.page_bytes));
  }
}

}  // namespace fastllm::cpu
