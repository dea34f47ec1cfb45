// Which page holds the K/V of which tokens after which prefix.
//
// A node is one full page of P tokens; its key is (id of the parent node, its tokens). Ids are counted up and never
// used again, so a node whose parent went away can never be reached by mistake. There is one root per cache salt.
// Looking up goes through a SipHash-1-3 under a random key (chosen collisions stay harmless), then the parent id and
// all tokens are compared. There is at most one node per page: everything but the roots is allocated once.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace fastllm {

class PrefixIndex {
 public:
  using HashKey = std::array<uint64_t, 2>;
  static HashKey random_key();

  PrefixIndex(int64_t num_pages, int64_t page_size, HashKey key);

  // The page of `tokens` (P of them) after `parent` (-1: the root of `salt`), or -1.
  [[nodiscard]] int32_t find(std::string_view salt, int32_t parent, std::span<const int32_t> tokens) const;
  // Adds a page that is not in the index under a parent that is (or -1). The key must be absent.
  void insert(std::string_view salt, int32_t parent, std::span<const int32_t> tokens, int32_t page,
              uint32_t generation);
  void erase(int32_t page);

  [[nodiscard]] bool contains(int32_t page) const { return nodes_[to_idx(page)].id != 0; }
  [[nodiscard]] uint32_t generation(int32_t page) const { return nodes_[to_idx(page)].generation; }
  [[nodiscard]] int32_t num_children(int32_t page) const { return nodes_[to_idx(page)].num_children; }
  [[nodiscard]] int64_t size() const { return size_; }
  [[nodiscard]] int64_t num_roots() const { return static_cast<int64_t>(roots_.size()); }

  // Throws kInternal if chains, counts of children and parents disagree. For tests.
  void check_integrity() const;

 private:
  struct Root {
    uint64_t id = 0;
    int64_t num_children = 0;
  };
  struct StringHash {
    using is_transparent = void;
    std::size_t operator()(std::string_view s) const { return std::hash<std::string_view>{}(s); }
  };
  using Roots = std::unordered_map<std::string, Root, StringHash, std::equal_to<>>;
  struct Node {
    uint64_t id = 0;  // 0: this page is not in the index
    uint64_t parent_id = 0;
    uint64_t hash = 0;
    uint32_t generation = 0;
    int32_t parent = -1;  // page of the parent, -1: a root
    int32_t num_children = 0;
    int32_t next = -1;                  // in the bucket
    Roots::value_type* root = nullptr;  // set when parent == -1
  };
  static std::size_t to_idx(int32_t page) { return static_cast<std::size_t>(page); }
  [[nodiscard]] uint64_t hash(uint64_t parent_id, std::span<const int32_t> tokens) const;
  [[nodiscard]] std::size_t bucket_of(uint64_t hash) const { return hash & (buckets_.size() - 1); }
  [[nodiscard]] std::span<const int32_t> tokens_of(int32_t page) const;

  std::size_t page_size_;
  HashKey key_;
  std::vector<int32_t> buckets_;  // first page of the chain, -1: empty
  std::vector<Node> nodes_;       // by page
  std::vector<int32_t> tokens_;   // [num_pages, P]
  Roots roots_;                   // only those that have children
  uint64_t next_id_ = 1;
  int64_t size_ = 0;
};

}  // namespace fastllm
