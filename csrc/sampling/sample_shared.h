// One sampled subgraph for all seeds. Blocks of targets are sampled on all threads; one thread at a time gives ids to
// the finished blocks, in order, from a dense table over all nodes that is kept between calls.
#pragma once

#include <atomic>
#include <cstdint>
#include <utility>
#include <vector>

#include "sampling/block.h"
#include "sampling/ordered_pipeline.h"

namespace gossamer::sampling {

constexpr int64_t kBlockTargets = 128;

// Local ids of the nodes of one type: table[node] - base is the local id of a node seen in this call; a smaller value
// was written by an earlier call and means nothing, so the table is never cleared.
class DenseIds {
 public:
  DenseIds(uint32_t* table, uint32_t base, std::vector<int64_t>& nodes) : table_(table), base_(base), nodes_(nodes) {}

  // Seeds keep their places even where one occurs twice; edges then refer to its first place.
  void add_seeds() {
    for (size_t i = 0; i < nodes_.size(); ++i) {
      uint32_t& entry = table_[nodes_[i]];
      if (entry < base_) entry = base_ + static_cast<uint32_t>(i);
    }
  }

  // Replaces node ids by local ids, new nodes in order. Free of branches: whether a node is new is a coin flip.
  void relabel(int64_t* ids, int64_t size) {
    int64_t known = static_cast<int64_t>(nodes_.size());
    nodes_.resize(known + size + 1);
    for (int64_t i = 0; i < size; ++i) {
      if (i + kPrefetchAhead < size) __builtin_prefetch(table_ + ids[i + kPrefetchAhead], 1);
      const int64_t node = ids[i];
      const uint32_t entry = table_[node];
      const bool is_new = entry < base_;
      const uint32_t now = is_new ? base_ + static_cast<uint32_t>(known) : entry;
      nodes_[known] = node;
      table_[node] = now;
      known += is_new;
      ids[i] = now - base_;
    }
    nodes_.resize(known);
  }

 private:
  uint32_t* const table_;
  const uint32_t base_;
  std::vector<int64_t>& nodes_;
};

// Where the newest nodes of every type begin: [begin, end) are the targets of the next hop.
struct Frontier {
  std::vector<int64_t> begin, end;

  void advance(Sample& sample) {
    begin = end;
    for (size_t type = 0; type < sample.node.size(); ++type) {
      end[type] = static_cast<int64_t>(sample.node[type].size());
      sample.num_nodes[type].push_back(end[type] - begin[type]);
    }
  }
};

// Samples blocks of uncompressed rows, on one thread.
class PlainRows {
 public:
  explicit PlainRows(const Request& request) : request_(request), sampler_(request.replace, request.temporal) {}

  bool operator()(const Relation& relation, const int64_t* targets, uint64_t stream, Block& block) {
    return sample_block(request_, relation, sampler_, targets, OneSeed{request_.seed}, stream, block);
  }

 private:
  const Request& request_;
  RowSampler sampler_;
};

// `parallel` calls its argument on every thread. `make_rows` is called there and returns what samples the blocks of the
// thread, called with (relation, targets, stream, block); it returns false if a column was not a node id.
template <typename Parallel, typename MakeRows>
class SharedSampler {
 public:
  SharedSampler(const Request& request, uint32_t* table, uint32_t base, const Parallel& parallel,
                const MakeRows& make_rows)
      : request_(request), parallel_(parallel), make_rows_(make_rows) {
    sample_.node = request.seeds;
    sample_.num_nodes.resize(request.num_nodes.size());
    sample_.num_edges.resize(request.relations.size());
    for (size_t type = 0; type < request.num_nodes.size(); ++type) {
      ids_.emplace_back(table, base, sample_.node[type]);
      ids_.back().add_seeds();
      table += request.num_nodes[type];
    }
  }

  Sample run() {
    Frontier frontier{std::vector<int64_t>(request_.num_nodes.size()), std::vector<int64_t>(request_.num_nodes.size())};
    frontier.advance(sample_);
    for (int64_t hop = 0; hop < request_.num_hops && sample_.valid; ++hop) {
      run_hop(hop, frontier);
      frontier.advance(sample_);
    }
    return std::move(sample_);
  }

 private:
  void run_hop(int64_t hop, const Frontier& frontier) {
    const std::vector<std::vector<int64_t>> nodes = targets(frontier);  // a copy: new nodes join while it is read
    std::vector<Block> blocks = plan(frontier);
    const std::vector<Relation> relations = request_.at_hop(hop);
    for (auto& edges : sample_.num_edges) edges.push_back(0);
    std::atomic<bool> valid{true};
    OrderedPipeline pipeline(static_cast<int64_t>(blocks.size()));
    parallel_([&] {
      auto sample_rows = make_rows_();
      const auto produce = [&](int64_t i) {
        Block& block = blocks[i];
        const Relation& relation = relations[block.relation];
        const int64_t* first =
            nodes[relation.target_type].data() + block.first_target - frontier.begin[relation.target_type];
        const uint64_t stream = hop * relations.size() + block.relation;
        if (!sample_rows(relation, first, stream, block)) valid = false;
      };
      pipeline.run(produce, [&](int64_t i) {
        if (!valid) return;
        Block& block = blocks[i];
        ids_[relations[block.relation].source_type].relabel(block.source.get(), block.size);
        sample_.num_edges[block.relation].back() += block.size;
      });
    });
    sample_.valid = valid;
    for (Block& block : blocks) sample_.blocks.push_back(std::move(block));
  }

  std::vector<std::vector<int64_t>> targets(const Frontier& frontier) const {
    std::vector<std::vector<int64_t>> nodes;
    for (size_t type = 0; type < frontier.begin.size(); ++type) {
      const auto& all = sample_.node[type];
      nodes.emplace_back(all.begin() + frontier.begin[type], all.begin() + frontier.end[type]);
    }
    return nodes;
  }

  std::vector<Block> plan(const Frontier& frontier) const {
    std::vector<Block> blocks;
    for (size_t r = 0; r < request_.relations.size(); ++r) {
      const int64_t type = request_.relations[r].target_type;
      for (int64_t first = frontier.begin[type]; first < frontier.end[type]; first += kBlockTargets) {
        Block block;
        block.relation = static_cast<int64_t>(r);
        block.first_target = first;
        block.count.resize(std::min(kBlockTargets, frontier.end[type] - first));
        blocks.push_back(std::move(block));
      }
    }
    return blocks;
  }

  const Request& request_;
  const Parallel& parallel_;
  const MakeRows& make_rows_;
  Sample sample_;
  std::vector<DenseIds> ids_;
};

template <typename Parallel, typename MakeRows>
Sample sample_shared(const Request& request, uint32_t* table, uint32_t base, const Parallel& parallel,
                     const MakeRows& make_rows) {
  return SharedSampler<Parallel, MakeRows>(request, table, base, parallel, make_rows).run();
}

}  // namespace gossamer::sampling
