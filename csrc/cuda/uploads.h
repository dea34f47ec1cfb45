// Copies to the device that the host does not wait for: through page-locked memory of a fixed size, from which the
// device reads by itself.
#pragma once

#include <cstdint>

#include "cuda/fl/host.h"

namespace fastllm::cuda {

class Uploads {
 public:
  explicit Uploads(fl::Device& device);

  // Returns when `from` may be changed; work that the stream is given later sees the bytes. Waits for the stream where
  // the memory is full of copies that may not have been made, and for copies that are larger than it.
  void send(fl::Stream& stream, void* to, const void* from, int64_t bytes);
  // The stream was waited for: all copies have been made.
  void clear() { used_ = 0; }

 private:
  fl::PinnedBuffer memory_;
  int64_t used_ = 0;
};

}  // namespace fastllm::cuda
