#include "cuda/uploads.h"

#include <cstring>

#include "core/checked.h"

namespace fastllm::cuda {
namespace {

// The arrays of a step: 16 bytes a token, 4 a page of its sequences (256 sequences of 64k tokens: 4 MiB).
constexpr int64_t kBytes = int64_t{8} << 20;

}  // namespace

Uploads::Uploads(fl::Device& device) : memory_(device, kBytes, "uploads") {}

void Uploads::send(fl::Stream& stream, void* to, const void* from, int64_t bytes) {
  if (bytes > memory_.size()) {
    stream.upload(to, from, bytes);
    stream.synchronize();
    clear();
    return;
  }
  if (used_ + bytes > memory_.size()) {
    stream.synchronize();
    clear();
  }
  std::byte* staged = memory_.data() + used_;
  std::memcpy(staged, from, static_cast<std::size_t>(bytes));
  stream.upload(to, staged, bytes);
  used_ += round_up(bytes, 64);
}

}  // namespace fastllm::cuda
