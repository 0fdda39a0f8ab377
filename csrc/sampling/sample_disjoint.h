// One sampled tree per seed, with times or without. Trees share nothing: each thread takes whole trees and finds their
// nodes in a hash table that stays in the first-level cache; at the end the trees are laid out hop by hop.
#pragma once

#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

#include "sampling/block.h"
#include "sampling/sample_row.h"

namespace gossamer::sampling {

// Local ids of the nodes of one type in the tree at hand. Starting the next tree is a new epoch, not a clearing.
class TreeIds {
 public:
  TreeIds() : table_(64) {}

  void start() {
    size_ = 0;
    if (++epoch_ == 0) {
      table_.assign(table_.size(), {});
      epoch_ = 1;
    }
  }

  // The id of a node, `next` if it is new.
  uint32_t find_or_add(int64_t node, uint32_t next) {
    if (2 * (size_ + 1) > table_.size()) grow();
    Entry& entry = find(node);
    if (entry.epoch != epoch_) {
      entry = {node, epoch_, next};
      ++size_;
    }
    return entry.id;
  }

  void relabel(int64_t* ids, int64_t size, std::vector<int64_t>& nodes) {
    for (int64_t i = 0; i < size; ++i) {
      const uint32_t next = static_cast<uint32_t>(nodes.size());
      const int64_t node = ids[i];
      ids[i] = find_or_add(node, next);
      if (ids[i] == next) nodes.push_back(node);
    }
  }

 private:
  struct Entry {
    int64_t node = 0;
    uint32_t epoch = 0;
    uint32_t id = 0;
  };

  Entry& find(int64_t node) {
    uint64_t i = mix_bits(node) & (table_.size() - 1);
    while (table_[i].epoch == epoch_ && table_[i].node != node) i = (i + 1) & (table_.size() - 1);
    return table_[i];
  }

  void grow() {
    const std::vector<Entry> old = std::exchange(table_, std::vector<Entry>(2 * table_.size()));
    for (const Entry& entry : old) {
      if (entry.epoch == epoch_) find(entry.node) = entry;
    }
  }

  std::vector<Entry> table_;
  uint32_t epoch_ = 0;
  uint64_t size_ = 0;
};

struct Tree {
  std::vector<std::vector<int64_t>> node;       // of each node type
  std::vector<std::vector<int64_t>> hop_begin;  // [num_types][num_hops + 2]: where the nodes of each hop begin
  std::vector<Block> blocks;                    // [num_hops][num_relations]
};

class TreeSampler {
 public:
  explicit TreeSampler(const Request& request)
      : request_(request), ids_(request.num_nodes.size()), sampler_(request.replace, request.temporal) {
    for (int64_t hop = 0; hop < request.num_hops; ++hop) hops_.push_back(request.at_hop(hop));
  }

  // Grows tree number `number` from one seed; false if a column was not a node id.
  bool grow(int64_t number, int64_t type, int64_t seed, const int64_t* time, Tree& tree) {
    tree.node.resize(ids_.size());
    tree.hop_begin.assign(ids_.size(), {0});
    for (TreeIds& ids : ids_) ids.start();
    ids_[type].relabel(&seed, 1, tree.node[type]);
    end_hop(tree);
    const uint64_t random_seed = RowRules::tree_seed(request_.seed, number);
    bool valid = true;
    for (int64_t hop = 0; hop < request_.num_hops && valid; ++hop) {
      for (size_t r = 0; r < hops_[hop].size() && valid; ++r) valid = grow_block(tree, hop, r, time, random_seed);
      end_hop(tree);
    }
    return valid;
  }

 private:
  bool grow_block(Tree& tree, int64_t hop, size_t r, const int64_t* time, uint64_t random_seed) {
    const Relation& relation = hops_[hop][r];
    const std::vector<int64_t>& bounds = tree.hop_begin[relation.target_type];
    Block& block = tree.blocks.emplace_back();
    block.relation = static_cast<int64_t>(r);
    block.count.resize(bounds[hop + 1] - bounds[hop]);
    const int64_t* targets = tree.node[relation.target_type].data() + bounds[hop];
    const uint64_t stream = hop * hops_[hop].size() + r;
    if (!sample_block(request_, relation, sampler_, targets, time, random_seed, stream, block)) return false;
    ids_[relation.source_type].relabel(block.source.get(), block.size, tree.node[relation.source_type]);
    return true;
  }

  static void end_hop(Tree& tree) {
    for (size_t type = 0; type < tree.node.size(); ++type) {
      tree.hop_begin[type].push_back(static_cast<int64_t>(tree.node[type].size()));
    }
  }

  const Request& request_;
  std::vector<std::vector<Relation>> hops_;
  std::vector<TreeIds> ids_;
  RowSampler sampler_;
};

// Lays trees out hop by hop and tree by tree, as a search over all of them at once would find their nodes.
class Forest {
 public:
  Forest(const Request& request, std::vector<Tree>& trees) : request_(request), trees_(trees) {
    const size_t num_types = request.num_nodes.size();
    sample_.node.resize(num_types);
    sample_.batch.resize(num_types);
    sample_.num_nodes.assign(num_types, std::vector<int64_t>(request.num_hops + 1));
    sample_.num_edges.assign(request.relations.size(), std::vector<int64_t>(request.num_hops));
    sample_.blocks.resize(request.num_hops * request.relations.size() * trees.size());
    place_.assign(num_types, std::vector<int64_t>((request.num_hops + 1) * trees.size()));
    for (size_t type = 0; type < num_types; ++type) place_nodes(type);
    count_edges();
  }

  // Writes one tree to its places; different trees may be written at the same time.
  void write(int64_t t) {
    Tree& tree = trees_[t];
    std::vector<std::vector<int64_t>> final_id(tree.node.size());
    for (size_t type = 0; type < tree.node.size(); ++type) {
      for (int64_t hop = 0; hop <= request_.num_hops; ++hop) write_nodes(t, type, hop, final_id[type]);
    }
    for (size_t b = 0; b < tree.blocks.size(); ++b) {
      Block& block = tree.blocks[b];
      const Relation& relation = request_.relations[block.relation];
      const int64_t hop = static_cast<int64_t>(b / request_.relations.size());
      block.first_target = place(relation.target_type, hop, t);
      for (int64_t i = 0; i < block.size; ++i) block.source[i] = final_id[relation.source_type][block.source[i]];
      sample_.blocks[b * trees_.size() + t] = std::move(block);
    }
  }

  Sample take() { return std::move(sample_); }

 private:
  int64_t& place(int64_t type, int64_t hop, int64_t t) { return place_[type][hop * trees_.size() + t]; }

  void place_nodes(size_t type) {
    int64_t total = 0;
    for (int64_t hop = 0; hop <= request_.num_hops; ++hop) {
      for (size_t t = 0; t < trees_.size(); ++t) {
        const std::vector<int64_t>& begin = trees_[t].hop_begin[type];
        place(type, hop, t) = total;
        total += begin[hop + 1] - begin[hop];
        sample_.num_nodes[type][hop] += begin[hop + 1] - begin[hop];
      }
    }
    sample_.node[type].resize(total);
    sample_.batch[type].resize(total);
  }

  void count_edges() {
    for (const Tree& tree : trees_) {
      for (size_t b = 0; b < tree.blocks.size(); ++b) {
        sample_.num_edges[tree.blocks[b].relation][b / request_.relations.size()] += tree.blocks[b].size;
      }
    }
  }

  void write_nodes(int64_t t, size_t type, int64_t hop, std::vector<int64_t>& final_id) {
    const std::vector<int64_t>& begin = trees_[t].hop_begin[type];
    int64_t to = place(type, hop, t);
    for (int64_t from = begin[hop]; from < begin[hop + 1]; ++from, ++to) {
      sample_.node[type][to] = trees_[t].node[type][from];
      sample_.batch[type][to] = t;
      final_id.push_back(to);
    }
  }

  const Request& request_;
  std::vector<Tree>& trees_;
  Sample sample_;
  std::vector<std::vector<int64_t>> place_;  // [num_types][num_hops + 1, num_trees]: first local id
};

// `parallel` calls its argument on every thread.
template <typename Parallel>
Sample sample_disjoint(const Request& request, const Parallel& parallel) {
  struct Seed {
    int64_t type, node;
    const int64_t* time;
  };
  std::vector<Seed> seeds;
  for (size_t type = 0; type < request.seeds.size(); ++type) {
    for (size_t i = 0; i < request.seeds[type].size(); ++i) {
      const int64_t* time = request.seed_time.empty() ? nullptr : &request.seed_time[type][i];
      seeds.push_back({static_cast<int64_t>(type), request.seeds[type][i], time});
    }
  }
  const int64_t num_trees = static_cast<int64_t>(seeds.size());
  std::vector<Tree> trees(num_trees);
  std::atomic<int64_t> next{0};
  std::atomic<bool> valid{true};
  parallel([&] {
    TreeSampler sampler(request);
    for (int64_t t = next++; t < num_trees && valid; t = next++) {
      if (!sampler.grow(t, seeds[t].type, seeds[t].node, seeds[t].time, trees[t])) valid = false;
    }
  });
  if (!valid) {
    Sample failed;
    failed.valid = false;
    return failed;
  }
  Forest forest(request, trees);
  next = 0;
  parallel([&] {
    for (int64_t t = next++; t < num_trees; t = next++) forest.write(t);
  });
  return forest.take();
}

}  // namespace gossamer::sampling
