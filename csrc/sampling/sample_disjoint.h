// One sampled tree per seed, with times or without. Each thread takes groves of a few trees, which share nothing but
// the time that they wait for memory, and finds the nodes of each in a small hash table; at the end all are laid out
// hop by hop.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "sampling/block.h"
#include "sampling/sample_row.h"

namespace gossamer::sampling {

// Local ids of the nodes of one type in the tree at hand: a hash table of places in the list of nodes, 4 bytes each, so
// that both stay in the first-level cache.
class TreeIds {
 public:
  // Clears the table, which costs no more than the last tree did.
  void start() {
    const uint64_t size = table_.size() > 8 * size_ + kLeastSize ? table_.size() / 2 : table_.size();
    table_.assign(size, 0);
    size_ = 0;
  }

  // Replaces node ids by places in `nodes`, where new nodes are appended in order. Whether a node is new is a coin
  // flip, so there is no branch for it: each is written behind the list, and an empty entry stands for that place.
  void relabel(int64_t* ids, int64_t size, std::vector<int64_t>& nodes) {
    constexpr int64_t kAhead = 8;
    make_room(size, nodes);
    const uint32_t first = static_cast<uint32_t>(nodes.size());
    uint32_t next = first;
    nodes.resize(first + size + 1);
    for (int64_t i = 0; i < size; ++i) {
      if (i + kAhead < size) __builtin_prefetch(&table_[slot(ids[i + kAhead])], 1);
      nodes[next] = ids[i];
      const auto [entry, place] = find(ids[i], next, nodes);
      *entry = place + 1;
      ids[i] = place;
      next += place == next;
    }
    nodes.resize(next);
    size_ += next - first;
  }

 private:
  static constexpr uint64_t kLeastSize = 64;

  struct Found {
    uint32_t* entry;
    uint32_t place;
  };

  uint64_t slot(int64_t node) const { return mix_bits(static_cast<uint64_t>(node)) & (table_.size() - 1); }

  // Where the node stands, or shall stand; place `next`, which holds the node, if it is new.
  Found find(int64_t node, uint32_t next, const std::vector<int64_t>& nodes) {
    for (uint64_t s = slot(node);; s = (s + 1) & (table_.size() - 1)) {
      const uint32_t place = table_[s] == 0 ? next : table_[s] - 1;
      if (nodes[place] == node) return {&table_[s], place};
    }
  }

  // For `size` nodes more: at most half of the table is used.
  void make_room(int64_t size, const std::vector<int64_t>& nodes) {
    const uint64_t least = 2 * (size_ + static_cast<uint64_t>(size));
    if (table_.size() >= least) return;
    const std::vector<uint32_t> old = std::exchange(table_, std::vector<uint32_t>(std::bit_ceil(least)));
    for (const uint32_t entry : old) {
      if (entry != 0) *find(nodes[entry - 1], entry - 1, nodes).entry = entry;
    }
  }

  std::vector<uint32_t> table_ = std::vector<uint32_t>(kLeastSize);
  uint64_t size_ = 0;
};

// Trees that grow together, hop by hop, so that their cache misses overlap. Nodes and blocks stand as in the result:
// hop by hop, and within a hop tree by tree.
struct Grove {
  std::vector<std::vector<int64_t>> node;       // of each node type
  std::vector<std::vector<uint32_t>> tree;      // of each node: number of its tree within the grove
  std::vector<std::vector<int64_t>> hop_begin;  // [num_types][num_hops + 2]: where the nodes of each hop begin
  std::vector<Block> blocks;                    // [num_hops][num_relations]
};

struct TreeSeed {
  int64_t type, node, time;  // no time: 0
};

// Of the targets in a grove (sample_block): `tree` of each, `seed` and `root` of each tree.
struct TreeOrigins {
  const uint32_t* tree;
  const uint64_t* seed;
  const TreeSeed* root;
  bool timed;
  bool has_times() const { return timed; }
  uint64_t seed_of(int64_t i) const { return seed[tree[i]]; }
  int64_t time_of(int64_t i) const { return root[tree[i]].time; }
};

class GroveSampler {
 public:
  explicit GroveSampler(const Request& request)
      : request_(request), num_types_(request.num_nodes.size()), sampler_(request.replace, request.temporal) {
    for (int64_t hop = 0; hop < request.num_hops; ++hop) hops_.push_back(request.at_hop(hop));
  }

  // Grows trees number `first` and on from their roots; false if a column was not a node id.
  bool grow(int64_t first, std::span<const TreeSeed> roots, Grove& grove) {
    grove.node.resize(num_types_);
    grove.tree.resize(num_types_);
    grove.hop_begin.assign(num_types_, {0});
    ids_.resize(std::max(ids_.size(), roots.size() * num_types_));
    for (TreeIds& ids : ids_) ids.start();
    seeds_.clear();
    for (size_t t = 0; t < roots.size(); ++t) {
      seeds_.push_back(RowRules::tree_seed(request_.seed, first + static_cast<int64_t>(t)));
      int64_t node = roots[t].node;
      relabel(grove, t, roots[t].type, &node, 1);
    }
    end_hop(grove);
    for (int64_t hop = 0; hop < request_.num_hops; ++hop) {
      if (!sample_hop(grove, hop, roots.data())) return false;
      relabel_hop(grove, hop, roots.size());
      end_hop(grove);
    }
    return true;
  }

 private:
  bool sample_hop(Grove& grove, int64_t hop, const TreeSeed* roots) {
    bool valid = true;
    for (size_t r = 0; r < hops_[hop].size() && valid; ++r) {
      const Relation& relation = hops_[hop][r];
      const std::vector<int64_t>& bounds = grove.hop_begin[relation.target_type];
      Block& block = grove.blocks.emplace_back();
      block.relation = static_cast<int64_t>(r);
      block.count.resize(bounds[hop + 1] - bounds[hop]);
      const int64_t* targets = grove.node[relation.target_type].data() + bounds[hop];
      const uint32_t* tree = grove.tree[relation.target_type].data() + bounds[hop];
      const TreeOrigins origins{tree, seeds_.data(), roots, !request_.seed_time.empty()};
      const uint64_t stream = hop * hops_[hop].size() + r;
      valid = sample_block(request_, relation, sampler_, targets, origins, stream, block);
    }
    return valid;
  }

  // Gives ids to the sources of a hop, tree by tree and within a tree relation by relation.
  void relabel_hop(Grove& grove, int64_t hop, size_t num_trees) {
    const size_t num_relations = hops_[hop].size();
    std::vector<size_t> target(num_relations);  // the next one of each block, and its first edge
    std::vector<int64_t> edge(num_relations);
    for (size_t t = 0; t < num_trees; ++t) {
      for (size_t r = 0; r < num_relations; ++r) {
        const Relation& relation = hops_[hop][r];
        Block& block = grove.blocks[hop * num_relations + r];
        const uint32_t* tree = grove.tree[relation.target_type].data() + grove.hop_begin[relation.target_type][hop];
        const int64_t begin = edge[r];
        for (; target[r] < block.count.size() && tree[target[r]] == t; ++target[r]) edge[r] += block.count[target[r]];
        relabel(grove, t, relation.source_type, block.source.get() + begin, edge[r] - begin);
      }
    }
  }

  void relabel(Grove& grove, size_t tree, int64_t type, int64_t* ids, int64_t size) {
    ids_[tree * num_types_ + type].relabel(ids, size, grove.node[type]);
    grove.tree[type].resize(grove.node[type].size(), static_cast<uint32_t>(tree));
  }

  static void end_hop(Grove& grove) {
    for (size_t type = 0; type < grove.node.size(); ++type) {
      grove.hop_begin[type].push_back(static_cast<int64_t>(grove.node[type].size()));
    }
  }

  const Request& request_;
  const size_t num_types_;
  std::vector<std::vector<Relation>> hops_;
  std::vector<TreeIds> ids_;     // [num_trees, num_types]
  std::vector<uint64_t> seeds_;  // of each tree
  RowSampler sampler_;
};

// Lays groves out hop by hop and tree by tree, as a search over all trees at once would find their nodes.
class Forest {
 public:
  Forest(const Request& request, std::vector<Grove>& groves, int64_t grove_size)
      : request_(request), groves_(groves), grove_size_(grove_size) {
    const size_t num_types = request.num_nodes.size();
    sample_.node.resize(num_types);
    sample_.batch.resize(num_types);
    sample_.num_nodes.assign(num_types, std::vector<int64_t>(request.num_hops + 1));
    sample_.num_edges.assign(request.relations.size(), std::vector<int64_t>(request.num_hops));
    sample_.blocks.resize(request.num_hops * request.relations.size() * groves.size());
    place_.assign(num_types, std::vector<int64_t>((request.num_hops + 1) * groves.size()));
    for (size_t type = 0; type < num_types; ++type) place_nodes(type);
    count_edges();
  }

  // Writes one grove to its places; different ones may be written at the same time.
  void write(int64_t g) {
    Grove& grove = groves_[g];
    std::vector<std::vector<int64_t>> final_id(grove.node.size());
    for (size_t type = 0; type < grove.node.size(); ++type) {
      final_id[type].resize(grove.node[type].size());
      for (int64_t hop = 0; hop <= request_.num_hops; ++hop) write_nodes(g, type, hop, final_id[type].data());
    }
    for (size_t b = 0; b < grove.blocks.size(); ++b) {
      Block& block = grove.blocks[b];
      const Relation& relation = request_.relations[block.relation];
      block.first_target = place(relation.target_type, static_cast<int64_t>(b / request_.relations.size()), g);
      const int64_t* const ids = final_id[relation.source_type].data();
      for (int64_t i = 0; i < block.size; ++i) block.source[i] = ids[block.source[i]];
      sample_.blocks[b * groves_.size() + g] = std::move(block);
    }
  }

  Sample take() { return std::move(sample_); }

 private:
  int64_t& place(int64_t type, int64_t hop, int64_t g) { return place_[type][hop * groves_.size() + g]; }

  void place_nodes(size_t type) {
    int64_t total = 0;
    for (int64_t hop = 0; hop <= request_.num_hops; ++hop) {
      for (size_t g = 0; g < groves_.size(); ++g) {
        const std::vector<int64_t>& begin = groves_[g].hop_begin[type];
        place(type, hop, g) = total;
        total += begin[hop + 1] - begin[hop];
        sample_.num_nodes[type][hop] += begin[hop + 1] - begin[hop];
      }
    }
    sample_.node[type].resize(total);
    sample_.batch[type].resize(total);
  }

  void count_edges() {
    for (const Grove& grove : groves_) {
      for (size_t b = 0; b < grove.blocks.size(); ++b) {
        sample_.num_edges[grove.blocks[b].relation][b / request_.relations.size()] += grove.blocks[b].size;
      }
    }
  }

  void write_nodes(int64_t g, size_t type, int64_t hop, int64_t* final_id) {
    const Grove& grove = groves_[g];
    const int64_t begin = grove.hop_begin[type][hop], end = grove.hop_begin[type][hop + 1], to = place(type, hop, g);
    std::copy(grove.node[type].begin() + begin, grove.node[type].begin() + end, sample_.node[type].begin() + to);
    for (int64_t i = begin; i < end; ++i) {
      sample_.batch[type][to + i - begin] = g * grove_size_ + grove.tree[type][i];
      final_id[i] = to + i - begin;
    }
  }

  const Request& request_;
  std::vector<Grove>& groves_;
  const int64_t grove_size_;
  Sample sample_;
  std::vector<std::vector<int64_t>> place_;  // [num_types][num_hops + 1, num_groves]: first local id
};

inline std::vector<TreeSeed> tree_seeds(const Request& request) {
  std::vector<TreeSeed> roots;
  for (size_t type = 0; type < request.seeds.size(); ++type) {
    for (size_t i = 0; i < request.seeds[type].size(); ++i) {
      const int64_t time = request.seed_time.empty() ? 0 : request.seed_time[type][i];
      roots.push_back({static_cast<int64_t>(type), request.seeds[type][i], time});
    }
  }
  return roots;
}

// `parallel` calls its argument on every thread. The result does not depend on how many trees grow together.
template <typename Parallel>
Sample sample_disjoint(const Request& request, const Parallel& parallel) {
  constexpr int64_t kGroveTrees = 8, kLeastGroves = 64;  // their tables of ids stay in the second-level cache
  const std::vector<TreeSeed> roots = tree_seeds(request);
  const int64_t num_trees = static_cast<int64_t>(roots.size());
  const int64_t grove_size = std::clamp<int64_t>(num_trees / kLeastGroves, 1, kGroveTrees);
  std::vector<Grove> groves((num_trees + grove_size - 1) / grove_size);
  const int64_t num_groves = static_cast<int64_t>(groves.size());
  std::atomic<int64_t> next{0};
  std::atomic<bool> valid{true};
  parallel([&] {
    GroveSampler sampler(request);
    for (int64_t g = next++; g < num_groves && valid; g = next++) {
      const int64_t first = g * grove_size, size = std::min(grove_size, num_trees - first);
      if (!sampler.grow(first, std::span(roots).subspan(first, size), groves[g])) valid = false;
    }
  });
  if (!valid) {
    Sample failed;
    failed.valid = false;
    return failed;
  }
  Forest forest(request, groves, grove_size);
  next = 0;
  parallel([&] {
    for (int64_t g = next++; g < num_groves; g = next++) forest.write(g);
  });
  return forest.take();
}

}  // namespace gossamer::sampling
