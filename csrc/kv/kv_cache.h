// Page pool and prefix index together: allocation that evicts, matching that shares, publishing that deduplicates.
//
// Rules that keep the two consistent:
// - A page enters the index (publish) only when the step that filled it has completed.
// - A sequence that publishes tokens which are there already takes the indexed page and returns its own. So whoever
// holds
//   a page holds all its ancestors, and a node never loses its parent while it is referenced.
// - Pages are released tail first, so ancestors are younger on the LRU list and tails are evicted before heads.
// - A page that is in the index or has other holders is not written; the scheduler copies it first.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "kv/page_pool.h"
#include "kv/prefix_index.h"

namespace fastllm {

class KvCache {
 public:
  KvCache(int64_t num_pages, int64_t page_size, bool has_prefix_index, PrefixIndex::HashKey key);

  // A page with one reference, evicting the oldest cached page if none is free; -1: all are referenced.
  int32_t allocate();
  void retain(int32_t page) { pool_.retain(page); }
  void release(int32_t page) { pool_.release(page); }
  // Releases from the tail to the head and clears the list.
  void release_all(std::vector<int32_t>& pages);

  // Appends the longest chain of indexed full pages of `tokens`, at most max_pages, to `pages`, each retained.
  // Returns how many.
  int64_t match(std::string_view salt, std::span<const int32_t> tokens, int64_t max_pages, std::vector<int32_t>& pages);
  // Publishes pages [num_published, num_full) of a sequence whose first num_full * P tokens are computed. Pages may be
  // exchanged for equal ones. Returns the new num_published (unchanged without a prefix index).
  int64_t publish(std::string_view salt, std::span<const int32_t> tokens, int64_t num_published, int64_t num_full,
                  std::vector<int32_t>& pages);
  // Takes pages whose content is in doubt out of the index, as far as nobody else holds or continues them.
  void forget(std::span<const int32_t> pages);

  [[nodiscard]] const PagePool& pool() const { return pool_; }
  [[nodiscard]] int64_t page_size() const { return page_size_; }
  [[nodiscard]] int64_t num_roots() const { return index_.num_roots(); }
  [[nodiscard]] int64_t pages_for(int64_t num_tokens) const { return (num_tokens + page_size_ - 1) / page_size_; }

  void check_integrity() const;

 private:
  [[nodiscard]] std::span<const int32_t> page_of(std::span<const int32_t> tokens, int64_t page_idx) const {
    return tokens.subspan(static_cast<std::size_t>(page_idx * page_size_), static_cast<std::size_t>(page_size_));
  }

  int64_t page_size_;
  bool has_prefix_index_;
  PagePool pool_;
  PrefixIndex index_;
};

}  // namespace fastllm
