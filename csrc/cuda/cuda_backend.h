// The operations on a CUDA device, or on the emulated one: which of the two is a matter of what fl/host.h is linked to.
#pragma once

#include <mutex>
#include <string>
#include <vector>

#include "cuda/fl/host.h"
#include "cuda/kernels.h"
#include "cuda/sampler.h"
#include "cuda/step_graphs.h"
#include "cuda/uploads.h"
#include "ops/ops.h"

namespace fastllm::cuda {

// Activations are float32; kernels on tensor cores round them as they load them.
class CudaBackend final : public Backend {
 public:
  CudaBackend(std::string name, const fl::DeviceOptions& options);

  [[nodiscard]] const char* name() const override { return name_.c_str(); }
  [[nodiscard]] int num_threads() const override { return 1; }

  [[nodiscard]] bool shares_host_memory() const override { return false; }
  [[nodiscard]] int64_t free_bytes() const override { return device_->free_bytes(); }
  [[nodiscard]] DeviceMemory allocate(int64_t bytes, const char* what, Contents contents) override;
  void upload(void* to, const void* from, int64_t bytes) override;
  void download(void* to, const void* from, int64_t bytes) override;

  [[nodiscard]] int64_t packed_bytes(const WeightDesc& desc) const override;
  void pack(const PackedWeight& to, const WeightSlice& slice) override;
  void pack_codes(const PackedWeight& to, const CodeSlice& slice) override;
  [[nodiscard]] int64_t page_size() const override;
  [[nodiscard]] int64_t kv_page_bytes(const KvSpec& spec) const override;
  [[nodiscard]] int64_t scratch_bytes(const OpLimits& limits) const override;
  void reserve(const OpLimits& limits) override;

  void use_stream(void* stream) override { stream_.use(stream); }
  [[nodiscard]] bool has_graphs() const override { return !device_->properties().is_synchronous; }
  void record(uint64_t key, const std::function<void()>& work) override;
  void run(uint64_t key, const std::function<void()>& work) override;
  [[nodiscard]] int64_t num_graphs() const override { return graphs_.size(); }

  void wait() override;
  void embed(const EmbedArgs& args) override { cuda::embed(stream_, args); }
  void rms_norm(const RmsNormArgs& args) override { cuda::rms_norm(stream_, args); }
  void linear(const LinearArgs& args) override { cuda::linear(stream_, args, workspace_); }
  void rope_table(const RopeTableArgs& args) override { cuda::rope_table(stream_, args); }
  void rope_and_store(const RopeAndStoreArgs& args) override { cuda::rope_and_store(stream_, args); }
  void paged_attention(const PagedAttentionArgs& args) override { cuda::paged_attention(stream_, args, workspace_); }
  void gated_activation(const GatedActivationArgs& args) override { cuda::gated_activation(stream_, args); }
  void moe_route(const MoeRouteArgs& args) override { cuda::moe_route(stream_, args); }
  void moe_ffn(const MoeFfnArgs& args) override { cuda::moe_ffn(stream_, args, workspace_); }
  void add(const AddArgs& args) override { cuda::add(stream_, args); }
  void softcap(const SoftcapArgs& args) override { cuda::softcap(stream_, args); }
  void sample(const SampleArgs& args) override { sampler_.sample(stream_, args); }
  void copy_pages(const CopyPagesArgs& args) override;

 private:
  void synchronize();  // call with copy_mutex_ held
  fl::Graph captured(const std::function<void()>& work);

  std::string name_;
  std::shared_ptr<fl::Device> device_;  // memory that was handed out keeps it
  fl::Stream stream_;
  std::mutex copy_mutex_;  // of stream_ and uploads_, while weights are packed on several threads
  Uploads uploads_;
  fl::DeviceBuffer workspace_memory_;
  Workspace workspace_;
  StepGraphs graphs_;  // gone when the workspace moves
  Sampler sampler_;
};

}  // namespace fastllm::cuda
