// Pages of the KV cache as numbers with reference counts; the bytes belong to whoever runs the model.
//
// A page is in exactly one of three states, and  free + cached + referenced == total  at all times:
//   free        0 references, not in the prefix index: on the free list (last freed, first used: still warm)
//   cached      0 references, in the prefix index: on the LRU list, evicted oldest first when nothing is free
//   referenced  1 or more references, in the index or not
// After construction nothing allocates, so returning pages cannot fail.
#pragma once

#include <cstdint>
#include <vector>

namespace fastllm {

class PagePool {
 public:
  explicit PagePool(int64_t num_pages);

  struct Allocation {
    int32_t page = -1;        // -1: every page is referenced
    bool was_cached = false;  // evicted: the owner must drop it from the prefix index
  };
  // A page with one reference and a new generation.
  Allocation allocate();
  void retain(int32_t page);
  void release(int32_t page);

  // The prefix index took or dropped this page.
  void mark_indexed(int32_t page);
  void unmark_indexed(int32_t page);

  [[nodiscard]] int32_t references(int32_t page) const { return entries_[to_idx(page)].references; }
  [[nodiscard]] bool is_indexed(int32_t page) const { return entries_[to_idx(page)].is_indexed; }
  [[nodiscard]] uint32_t generation(int32_t page) const { return entries_[to_idx(page)].generation; }
  [[nodiscard]] int64_t num_pages() const { return static_cast<int64_t>(entries_.size()); }
  [[nodiscard]] int64_t num_free() const { return static_cast<int64_t>(free_.size()); }
  [[nodiscard]] int64_t num_cached() const { return num_cached_; }
  [[nodiscard]] int64_t num_referenced() const { return num_pages() - num_free() - num_cached_; }
  // Pages that allocate() can still hand out.
  [[nodiscard]] int64_t num_available() const { return num_free() + num_cached_; }

  // Throws kInternal if the lists, counts and flags disagree. For tests: O(num_pages).
  void check_integrity() const;

 private:
  struct Entry {
    int32_t references = 0;
    uint32_t generation = 0;
    bool is_indexed = false;
    int32_t older = -1;  // neighbours on the LRU list
    int32_t newer = -1;
  };
  static std::size_t to_idx(int32_t page) { return static_cast<std::size_t>(page); }
  void append_to_lru(int32_t page);
  void unlink_from_lru(int32_t page);

  std::vector<Entry> entries_;
  std::vector<int32_t> free_;
  int32_t oldest_ = -1;
  int32_t newest_ = -1;
  int64_t num_cached_ = 0;
};

}  // namespace fastllm
