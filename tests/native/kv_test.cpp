// Page pool and prefix index under random use, against a map from whole token prefixes to what was published.
#include <map>
#include <set>
#include <string>
#include <vector>

#include "harness.h"
#include "kv/kv_cache.h"

namespace fastllm::test {
namespace {

// One user of the cache: tokens, and pages that it holds for the full ones.
struct Holder {
  std::string salt;
  std::vector<int32_t> tokens;
  std::vector<int32_t> pages;
  int64_t num_published = 0;
};

// What each page holds, written by whoever allocated it. The cache never sees this.
using Content = std::map<int32_t, std::pair<std::string, std::vector<int32_t>>>;

std::vector<int32_t> prefix(const std::vector<int32_t>& tokens, std::size_t length) {
  return {tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(length)};
}

class KvSimulation {
 public:
  explicit KvSimulation(uint64_t seed)
      : random_(seed), page_size_(random_.pick(1, 4)), cache_(random_.pick(1, 24), page_size_, true, key()) {}

  void run() {
    for (int64_t i = random_.pick(20, 120); i > 0; --i) {
      act();
      check();
    }
    for (Holder& holder : holders_) cache_.release_all(holder.pages);
    holders_.clear();
    check();
    require_equal(cache_.pool().num_referenced(), 0, "pages that nobody holds");
  }

  int64_t num_hits = 0;

 private:
  // A key of zeros for some: answers must not depend on it.
  PrefixIndex::HashKey key() { return random_.chance(50) ? PrefixIndex::random_key() : PrefixIndex::HashKey{0, 0}; }

  void act() {
    const int64_t what = random_.pick(1, 100);
    if (what <= 45 || holders_.empty()) {
      open();
    } else if (what <= 85) {
      close(static_cast<std::size_t>(random_.pick(0, static_cast<int64_t>(holders_.size()) - 1)));
    } else {
      Holder& holder = holders_[static_cast<std::size_t>(random_.pick(0, static_cast<int64_t>(holders_.size()) - 1))];
      cache_.forget(holder.pages);
      close(static_cast<std::size_t>(&holder - holders_.data()));
    }
  }

  // Matches, fills the rest with own pages if there are enough, publishes.
  void open() {
    Holder holder;
    holder.salt = random_.chance(30) ? "salt" : "";
    const int64_t num_pages = random_.pick(1, 6);
    for (int64_t i = 0; i < num_pages * page_size_; ++i) {
      holder.tokens.push_back(static_cast<int32_t>(random_.chance(70) ? 0 : random_.pick(0, 1)));
    }
    const int64_t hits = cache_.match(holder.salt, holder.tokens, num_pages, holder.pages);
    require_equal(static_cast<int64_t>(holder.pages.size()), hits, "pages matched");
    num_hits += hits;
    for (std::size_t i = 0; i < holder.pages.size(); ++i) check_content(holder, i);
    while (static_cast<int64_t>(holder.pages.size()) < num_pages) {
      const int32_t page = cache_.allocate();
      if (page < 0) {
        require_equal(cache_.pool().num_available(), 0, "pages available when none was given");
        cache_.release_all(holder.pages);
        return;
      }
      holder.pages.push_back(page);
      const std::size_t end = holder.pages.size() * static_cast<std::size_t>(page_size_);
      content_[page] = {holder.salt, prefix(holder.tokens, end)};
    }
    check();
    holder.num_published =
        cache_.publish(holder.salt, holder.tokens, hits, random_.pick(hits, num_pages), holder.pages);
    for (std::size_t i = 0; i < holder.pages.size(); ++i) check_content(holder, i);
    holders_.push_back(std::move(holder));
  }

  void close(std::size_t i) {
    cache_.release_all(holders_[i].pages);
    holders_.erase(holders_.begin() + static_cast<std::ptrdiff_t>(i));
  }

  // A page that a holder was given or kept must hold the holder's own prefix.
  void check_content(const Holder& holder, std::size_t i) const {
    const std::size_t end = (i + 1) * static_cast<std::size_t>(page_size_);
    require(content_.at(holder.pages[i]) == std::pair(holder.salt, prefix(holder.tokens, end)),
            "page " + std::to_string(holder.pages[i]) + " holds something else");
  }

  void check() const {
    cache_.check_integrity();
    std::map<int32_t, int32_t> num_holders;
    for (const Holder& holder : holders_) {
      for (const int32_t page : holder.pages) ++num_holders[page];
      for (std::size_t i = 0; i < holder.pages.size(); ++i) check_content(holder, i);
    }
    // open() calls this with pages that are not in holders_ yet, so counts may only be larger.
    for (const auto& [page, count] : num_holders) {
      require(cache_.pool().references(page) >= count, "page " + std::to_string(page) + " lost a reference");
    }
  }

  Random random_;
  int64_t page_size_;
  KvCache cache_;
  std::vector<Holder> holders_;
  Content content_;
};

NATIVE_TEST(random_use_keeps_every_page_what_it_is) {
  int64_t num_hits = 0;
  for (int64_t i = 0; i < options().schedules / 4; ++i) {
    const uint64_t seed = options().seed + static_cast<uint64_t>(i);
    try {
      KvSimulation simulation(seed);
      simulation.run();
      num_hits += simulation.num_hits;
    } catch (const std::exception& e) {
      throw std::runtime_error("--schedules 4 --seed " + std::to_string(seed) + ": " + e.what());
    }
  }
  require(options().schedules < 100 || num_hits > options().schedules, "hardly a prefix was ever found");
}

NATIVE_TEST(misuse_of_a_page_is_an_error) {
  PagePool pool(2);
  const int32_t page = pool.allocate().page;
  pool.release(page);
  require_error(ErrorKind::kInternal, [&] { pool.release(page); }, "released twice");
  require_error(ErrorKind::kInternal, [&] { pool.retain(page); }, "a free page shared");
  require_error(ErrorKind::kInternal, [&] { pool.mark_indexed(page); }, "a free page indexed");
  require_error(ErrorKind::kInternal, [&] { pool.unmark_indexed(page); }, "not in the index");
  pool.check_integrity();
  require_error(ErrorKind::kInvalidRequest, [] { PagePool none(0); }, "no pages");
  require_error(ErrorKind::kInvalidRequest, [] { PagePool many(int64_t{1} << 40); }, "more pages than numbers");
}

NATIVE_TEST(a_page_that_was_evicted_is_not_found) {
  KvCache cache(2, 2, true, {1, 2});
  std::vector<int32_t> first;
  for (int i = 0; i < 2; ++i) first.push_back(cache.allocate());
  const std::vector<int32_t> tokens = {1, 2, 3, 4};
  require_equal(cache.publish("", tokens, 0, 2, first), 2, "published");
  cache.release_all(first);
  const uint32_t generation = cache.pool().generation(1);
  std::vector<int32_t> other = {cache.allocate()};  // the tail goes first
  std::vector<int32_t> found;
  require_equal(cache.match("", tokens, 2, found), 1, "pages left of the chain");
  require(found[0] != other[0], "a page that is somebody else's was found");
  require_equal(cache.pool().generation(other[0]), generation + 1, "generation of a page that was given anew");
  require_equal(cache.match("salt", tokens, 2, other), 0, "pages of another salt");
  cache.check_integrity();
}

}  // namespace
}  // namespace fastllm::test
