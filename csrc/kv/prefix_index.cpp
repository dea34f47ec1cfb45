#include "kv/prefix_index.h"

#include <algorithm>
#include <bit>
#include <random>

#include "core/checked.h"

namespace fastllm {
namespace {

// SipHash with 1 compression and 3 finalisation rounds (Aumasson and Bernstein, 2012), on 64-bit words.
class SipHash {
 public:
  explicit SipHash(const PrefixIndex::HashKey& key)
      : v0_(key[0] ^ 0x736f6d6570736575u),
        v1_(key[1] ^ 0x646f72616e646f6du),
        v2_(key[0] ^ 0x6c7967656e657261u),
        v3_(key[1] ^ 0x7465646279746573u) {}

  void add(uint64_t word) {
    v3_ ^= word;
    round();
    v0_ ^= word;
  }
  uint64_t finish() {
    v2_ ^= 0xff;
    for (int i = 0; i < 3; ++i) round();
    return v0_ ^ v1_ ^ v2_ ^ v3_;
  }

 private:
  void round() {
    v0_ += v1_;
    v1_ = std::rotl(v1_, 13) ^ v0_;
    v0_ = std::rotl(v0_, 32);
    v2_ += v3_;
    v3_ = std::rotl(v3_, 16) ^ v2_;
    v0_ += v3_;
    v3_ = std::rotl(v3_, 21) ^ v0_;
    v2_ += v1_;
    v1_ = std::rotl(v1_, 17) ^ v2_;
    v2_ = std::rotl(v2_, 32);
  }
  uint64_t v0_, v1_, v2_, v3_;
};

}  // namespace

PrefixIndex::HashKey PrefixIndex::random_key() {
  std::random_device device;
  HashKey key;
  for (uint64_t& word : key) word = (uint64_t{device()} << 32) | device();
  return key;
}

PrefixIndex::PrefixIndex(int64_t num_pages, int64_t page_size, HashKey key)
    : page_size_(narrow<std::size_t>(page_size, "page_size")), key_(key) {
  const auto count = narrow<std::size_t>(num_pages, "num_pages");
  buckets_.assign(std::bit_ceil(count), -1);
  nodes_.resize(count);
  tokens_.resize(narrow<std::size_t>(checked_mul(num_pages, page_size, "prefix index"), "prefix index"));
}

std::span<const int32_t> PrefixIndex::tokens_of(int32_t page) const {
  return std::span(tokens_).subspan(to_idx(page) * page_size_, page_size_);
}

uint64_t PrefixIndex::hash(uint64_t parent_id, std::span<const int32_t> tokens) const {
  SipHash sip(key_);
  sip.add(parent_id);
  for (std::size_t i = 0; i < tokens.size(); i += 2) {
    const uint64_t high = i + 1 < tokens.size() ? static_cast<uint32_t>(tokens[i + 1]) : 0;
    sip.add((high << 32) | static_cast<uint32_t>(tokens[i]));
  }
  return sip.finish();
}

int32_t PrefixIndex::find(std::string_view salt, int32_t parent, std::span<const int32_t> tokens) const {
  uint64_t parent_id = 0;
  if (parent >= 0) {
    parent_id = nodes_[to_idx(parent)].id;
  } else if (const auto root = roots_.find(salt); root != roots_.end()) {
    parent_id = root->second.id;
  }
  if (parent_id == 0) return -1;
  const uint64_t wanted = hash(parent_id, tokens);
  for (int32_t page = buckets_[bucket_of(wanted)]; page >= 0; page = nodes_[to_idx(page)].next) {
    const Node& node = nodes_[to_idx(page)];
    if (node.hash == wanted && node.parent_id == parent_id && std::ranges::equal(tokens_of(page), tokens)) return page;
  }
  return -1;
}

void PrefixIndex::insert(std::string_view salt, int32_t parent, std::span<const int32_t> tokens, int32_t page,
                         uint32_t generation) {
  FASTLLM_CHECK(!contains(page) && tokens.size() == page_size_, "page ", page, " cannot be added");
  FASTLLM_CHECK(parent < 0 || contains(parent), "parent ", parent, " is not in the prefix index");
  Node node;
  node.generation = generation;
  node.parent = parent;
  if (parent >= 0) {
    node.parent_id = nodes_[to_idx(parent)].id;
    ++nodes_[to_idx(parent)].num_children;
  } else {
    const auto [root, is_new] = roots_.try_emplace(std::string(salt));
    if (is_new) root->second.id = next_id_++;
    ++root->second.num_children;
    node.parent_id = root->second.id;
    node.root = &*root;
  }
  node.id = next_id_++;
  node.hash = hash(node.parent_id, tokens);
  int32_t& head = buckets_[bucket_of(node.hash)];
  node.next = head;
  head = page;
  nodes_[to_idx(page)] = node;
  std::ranges::copy(tokens, tokens_.begin() + static_cast<int64_t>(to_idx(page) * page_size_));
  ++size_;
}

void PrefixIndex::erase(int32_t page) {
  Node& node = nodes_[to_idx(page)];
  FASTLLM_CHECK(node.id != 0, "page ", page, " is not in the prefix index");
  FASTLLM_CHECK(node.num_children == 0, "page ", page, " still has children in the prefix index");
  int32_t* link = &buckets_[bucket_of(node.hash)];
  while (*link != page) link = &nodes_[to_idx(*link)].next;
  *link = node.next;
  if (node.parent >= 0) {
    --nodes_[to_idx(node.parent)].num_children;
  } else if (--node.root->second.num_children == 0) {
    // By iterator: erasing by a key that lives in the erased element would read it after its end.
    roots_.erase(roots_.find(node.root->first));
  }
  node = Node{};
  --size_;
}

void PrefixIndex::check_integrity() const {
  std::vector<int32_t> num_children(nodes_.size(), 0);
  int64_t num_root_children = 0;
  int64_t num_reachable = 0;
  for (const int32_t head : buckets_) {
    for (int32_t page = head; page >= 0; page = nodes_[to_idx(page)].next) {
      const Node& node = nodes_[to_idx(page)];
      ++num_reachable;
      FASTLLM_CHECK(node.id != 0 && num_reachable <= size_, "page ", page, " is chained but not in the index");
      FASTLLM_CHECK(node.hash == hash(node.parent_id, tokens_of(page)), "tokens of page ", page, " changed");
      if (node.parent >= 0) {
        FASTLLM_CHECK(nodes_[to_idx(node.parent)].id == node.parent_id, "the parent of page ", page, " was evicted");
        ++num_children[to_idx(node.parent)];
      } else {
        FASTLLM_CHECK(node.root->second.id == node.parent_id, "the root of page ", page, " is gone");
        ++num_root_children;
      }
    }
  }
  FASTLLM_CHECK(num_reachable == size_, size_, " nodes, ", num_reachable, " reachable");
  for (std::size_t page = 0; page < nodes_.size(); ++page) {
    FASTLLM_CHECK(num_children[page] == nodes_[page].num_children, "children of page ", page, " are miscounted");
  }
  for (const auto& [salt, root] : roots_) {
    FASTLLM_CHECK(root.num_children > 0, "a root without children was kept");
    num_root_children -= root.num_children;
  }
  FASTLLM_CHECK(num_root_children == 0, "children of the roots are miscounted by ", num_root_children);
}

}  // namespace fastllm
