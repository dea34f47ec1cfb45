#include "core/buffer.h"

#include <sys/mman.h>

#include <utility>

#include "core/checked.h"
#include "core/error.h"
#include "core/fault.h"

namespace fastllm {
namespace {
constexpr int64_t kSmallAlignment = 4096;
constexpr int64_t kHugePage = 2 << 20;
}  // namespace

Buffer::Buffer(int64_t bytes, const char* what) : size_(bytes) {
  if (bytes < 0) fail(ErrorKind::kInternal, what, ": negative size ", bytes);
  if (bytes == 0) return;
  const int64_t alignment = bytes >= kHugePage ? kHugePage : kSmallAlignment;
  mapping_size_ = static_cast<std::size_t>(checked_add(round_up(bytes, kSmallAlignment), alignment, what));
  void* mapping = MAP_FAILED;
  if (!fault::should_fail(fault::Point::kAlloc)) {
    mapping = mmap(nullptr, mapping_size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  }
  if (mapping == MAP_FAILED) {
    mapping_size_ = 0;
    size_ = 0;
    fail(ErrorKind::kOutOfMemory, what, ": the system refused ", bytes, " bytes");
  }
  mapping_ = static_cast<std::byte*>(mapping);
  const auto address = reinterpret_cast<uintptr_t>(mapping_);
  const uintptr_t aligned =
      (address + static_cast<uintptr_t>(alignment) - 1) & ~(static_cast<uintptr_t>(alignment) - 1);
  data_ = mapping_ + (aligned - address);
  if (alignment == kHugePage) madvise(data_, static_cast<std::size_t>(bytes), MADV_HUGEPAGE);  // best effort
}

Buffer::~Buffer() {
  if (mapping_ != nullptr) munmap(mapping_, mapping_size_);
}

Buffer::Buffer(Buffer&& other) noexcept
    : mapping_(std::exchange(other.mapping_, nullptr)),
      mapping_size_(std::exchange(other.mapping_size_, 0)),
      data_(std::exchange(other.data_, nullptr)),
      size_(std::exchange(other.size_, 0)) {}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  std::swap(mapping_, other.mapping_);
  std::swap(mapping_size_, other.mapping_size_);
  std::swap(data_, other.data_);
  std::swap(size_, other.size_);
  return *this;
}

void* Arena::take_bytes(int64_t count, int64_t element_size) {
  constexpr int64_t kAlignment = 64;
  const int64_t bytes = round_up(checked_mul(count, element_size, "arena"), kAlignment);
  const int64_t start = used_;
  used_ = checked_add(used_, bytes, "arena");
  if (is_planning_) return nullptr;
  FASTLLM_CHECK(used_ <= static_cast<int64_t>(memory_.size()), "arena of ", memory_.size(), " bytes, asked for ",
                used_);
  return memory_.data() + start;
}

}  // namespace fastllm
