#include "kv/page_pool.h"

#include "core/checked.h"

namespace fastllm {

PagePool::PagePool(int64_t num_pages) {
  if (num_pages < 1 || num_pages > INT32_MAX) {
    fail(ErrorKind::kInvalidRequest, "num_pages = ", num_pages, " is outside [1, ", INT32_MAX, "]");
  }
  entries_.resize(static_cast<std::size_t>(num_pages));
  free_.reserve(static_cast<std::size_t>(num_pages));
  for (int64_t page = num_pages - 1; page >= 0; --page) free_.push_back(static_cast<int32_t>(page));
}

PagePool::Allocation PagePool::allocate() {
  Allocation result;
  if (!free_.empty()) {
    result.page = free_.back();
    free_.pop_back();
  } else if (oldest_ >= 0) {
    result = {oldest_, true};
    unlink_from_lru(oldest_);
    entries_[to_idx(result.page)].is_indexed = false;
  } else {
    return result;
  }
  Entry& entry = entries_[to_idx(result.page)];
  entry.references = 1;
  ++entry.generation;
  return result;
}

void PagePool::retain(int32_t page) {
  Entry& entry = entries_[to_idx(page)];
  FASTLLM_CHECK(entry.references > 0 || entry.is_indexed, "page ", page, " is free and cannot be shared");
  if (entry.references == 0) unlink_from_lru(page);
  ++entry.references;
}

void PagePool::release(int32_t page) {
  Entry& entry = entries_[to_idx(page)];
  FASTLLM_CHECK(entry.references > 0, "page ", page, " was released twice");
  if (--entry.references > 0) return;
  if (entry.is_indexed) {
    append_to_lru(page);
  } else {
    free_.push_back(page);
  }
}

void PagePool::mark_indexed(int32_t page) {
  Entry& entry = entries_[to_idx(page)];
  FASTLLM_CHECK(entry.references > 0 && !entry.is_indexed, "page ", page, " cannot enter the prefix index");
  entry.is_indexed = true;
}

void PagePool::unmark_indexed(int32_t page) {
  Entry& entry = entries_[to_idx(page)];
  FASTLLM_CHECK(entry.is_indexed, "page ", page, " is not in the prefix index");
  entry.is_indexed = false;
  if (entry.references > 0) return;
  unlink_from_lru(page);
  free_.push_back(page);
}

void PagePool::append_to_lru(int32_t page) {
  Entry& entry = entries_[to_idx(page)];
  entry.older = newest_;
  entry.newer = -1;
  (newest_ >= 0 ? entries_[to_idx(newest_)].newer : oldest_) = page;
  newest_ = page;
  ++num_cached_;
}

void PagePool::unlink_from_lru(int32_t page) {
  Entry& entry = entries_[to_idx(page)];
  (entry.older >= 0 ? entries_[to_idx(entry.older)].newer : oldest_) = entry.newer;
  (entry.newer >= 0 ? entries_[to_idx(entry.newer)].older : newest_) = entry.older;
  entry.older = entry.newer = -1;
  --num_cached_;
}

void PagePool::check_integrity() const {
  std::vector<char> is_listed(entries_.size(), 0);
  for (const int32_t page : free_) {
    const Entry& entry = entries_[to_idx(page)];
    FASTLLM_CHECK(entry.references == 0 && !entry.is_indexed, "free page ", page, " is in use");
    FASTLLM_CHECK(is_listed[to_idx(page)]++ == 0, "page ", page, " is twice on the free list");
  }
  int64_t num_cached = 0;
  int32_t older = -1;
  for (int32_t page = oldest_; page >= 0; page = entries_[to_idx(page)].newer) {
    const Entry& entry = entries_[to_idx(page)];
    FASTLLM_CHECK(entry.references == 0 && entry.is_indexed, "cached page ", page, " has the wrong state");
    FASTLLM_CHECK(entry.older == older, "the LRU list is broken at page ", page);
    FASTLLM_CHECK(is_listed[to_idx(page)]++ == 0, "page ", page, " is on two lists");
    older = page;
    ++num_cached;
  }
  FASTLLM_CHECK(older == newest_ && num_cached == num_cached_, "the LRU list has ", num_cached, " pages, counted ",
                num_cached_);
  int64_t num_referenced = 0;
  for (const Entry& entry : entries_) num_referenced += entry.references > 0 ? 1 : 0;
  FASTLLM_CHECK(num_free() + num_cached + num_referenced == num_pages(), "free ", num_free(), " + cached ", num_cached,
                " + referenced ", num_referenced, " != total ", num_pages());
}

}  // namespace fastllm
