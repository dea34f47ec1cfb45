#include "kv/kv_cache.h"

#include "core/error.h"

namespace fastllm {

KvCache::KvCache(int64_t num_pages, int64_t page_size, bool has_prefix_index, PrefixIndex::HashKey key)
    : page_size_(page_size),
      has_prefix_index_(has_prefix_index),
      pool_(num_pages),
      index_(has_prefix_index ? num_pages : 0, page_size, key) {}

int32_t KvCache::allocate() {
  const PagePool::Allocation allocation = pool_.allocate();
  if (allocation.was_cached) index_.erase(allocation.page);
  return allocation.page;
}

void KvCache::release_all(std::vector<int32_t>& pages) {
  while (!pages.empty()) {
    pool_.release(pages.back());
    pages.pop_back();
  }
}

int64_t KvCache::match(std::string_view salt, std::span<const int32_t> tokens, int64_t max_pages,
                       std::vector<int32_t>& pages) {
  if (!has_prefix_index_) return 0;
  int32_t parent = -1;
  int64_t count = 0;
  for (; count < max_pages; ++count) {
    const int32_t page = index_.find(salt, parent, page_of(tokens, count));
    if (page < 0) break;
    FASTLLM_CHECK(index_.generation(page) == pool_.generation(page), "page ", page, " was reused under the index");
    pages.push_back(page);
    pool_.retain(page);
    parent = page;
  }
  return count;
}

int64_t KvCache::publish(std::string_view salt, std::span<const int32_t> tokens, int64_t num_published,
                         int64_t num_full, std::vector<int32_t>& pages) {
  if (!has_prefix_index_) return num_published;
  for (; num_published < num_full; ++num_published) {
    const int32_t parent = num_published == 0 ? -1 : pages[static_cast<std::size_t>(num_published - 1)];
    int32_t& own = pages[static_cast<std::size_t>(num_published)];
    const std::span<const int32_t> content = page_of(tokens, num_published);
    const int32_t known = index_.find(salt, parent, content);
    if (known < 0) {
      index_.insert(salt, parent, content, own, pool_.generation(own));
      pool_.mark_indexed(own);
    } else if (known != own) {
      pool_.retain(known);
      pool_.release(own);
      own = known;
    }
  }
  return num_published;
}

void KvCache::forget(std::span<const int32_t> pages) {
  if (!has_prefix_index_) return;
  for (std::size_t i = pages.size(); i-- > 0;) {
    const int32_t page = pages[i];
    if (!index_.contains(page)) continue;
    if (pool_.references(page) > 1 || index_.num_children(page) > 0) return;
    index_.erase(page);
    pool_.unmark_indexed(page);
  }
}

void KvCache::check_integrity() const {
  pool_.check_integrity();
  if (!has_prefix_index_) return;
  index_.check_integrity();
  int64_t num_indexed = 0;
  for (int32_t page = 0; page < pool_.num_pages(); ++page) {
    FASTLLM_CHECK(pool_.is_indexed(page) == index_.contains(page), "pool and index disagree about page ", page);
    if (!index_.contains(page)) continue;
    ++num_indexed;
    FASTLLM_CHECK(pool_.generation(page) == index_.generation(page), "page ", page, " has a stale generation");
  }
  FASTLLM_CHECK(num_indexed == index_.size(), "the index has ", index_.size(), " nodes for ", num_indexed, " pages");
}

}  // namespace fastllm
