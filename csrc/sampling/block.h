// What every way of sampling several hops shares: the request, the result, and the sampling of one block of targets.
// Local ids are given in the order of discovery: the seeds, then hop by hop, edge type by edge type, target by target.
// The result does not depend on the number of threads.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "sampling/row_sampler.h"

namespace gossamer::sampling {

constexpr int64_t kPrefetchAhead = 32;  // single elements
constexpr int64_t kRowsAhead = 4;       // whole rows

struct Request {
  std::vector<Relation> relations;
  std::vector<double> fanouts;                  // [num_relations, num_hops]
  std::vector<int64_t> num_nodes;               // of each node type
  std::vector<std::vector<int64_t>> seeds;      // of each node type
  std::vector<std::vector<int64_t>> seed_time;  // of each node type; empty without times
  int64_t num_hops = 0;
  uint64_t seed = 0;
  int64_t window = -1;  // -1: no limit
  bool replace = false;
  Temporal temporal = Temporal::kUniform;

  // The relations with their fan-outs of one hop.
  std::vector<Relation> at_hop(int64_t hop) const {
    std::vector<Relation> result = relations;
    for (size_t r = 0; r < result.size(); ++r) result[r].fanout = fanouts[r * num_hops + hop];
    return result;
  }
};

// The edges sampled for consecutive targets of one relation: `count[i]` edges of target first_target + i. On cache
// lines of its own: threads fill neighbouring blocks at the same time.
struct alignas(64) Block {
  int64_t relation = 0;
  int64_t first_target = 0;
  int64_t size = 0;
  std::vector<uint32_t> count;
  std::unique_ptr<int64_t[]> edge;    // positions, then the caller's numbers
  std::unique_ptr<int64_t[]> source;  // global ids, then local ones
};

struct Sample {
  std::vector<std::vector<int64_t>> node;       // of each node type
  std::vector<std::vector<int64_t>> batch;      // of each node type; only of disjoint trees
  std::vector<std::vector<int64_t>> num_nodes;  // [num_types][num_hops + 1]
  std::vector<std::vector<int64_t>> num_edges;  // [num_relations][num_hops]
  std::vector<Block> blocks;                    // in output order
  bool valid = true;                            // false: a column was not a node id
};

// Reads the rows of a few targets ahead of their use, so that their cache misses overlap.
template <typename Visit>
void for_each_row(const Relation& relation, const int64_t* targets, int64_t size, const Visit& visit) {
  for (int64_t i = 0; i < size; ++i) {
    if (i + kPrefetchAhead < size) __builtin_prefetch(relation.rows.address(targets[i + kPrefetchAhead]));
    visit(i, relation.rows.row(targets[i]));
  }
}

// source[i] = column of position edge[i]; false if one of them is not in [0, num_nodes).
inline bool read_sources(const EdgeNumbers& col, const int64_t* edge, int64_t size, int64_t num_nodes,
                         int64_t* source) {
  bool valid = true;
  for (int64_t i = 0; i < size; ++i) {
    if (i + kPrefetchAhead < size) __builtin_prefetch(col.address(edge[i + kPrefetchAhead]));
    source[i] = col[edge[i]];
    valid &= static_cast<uint64_t>(source[i]) < static_cast<uint64_t>(num_nodes);
  }
  return valid;
}

// Replaces positions by the caller's numbers of the edges.
inline void read_edge_ids(const EdgeNumbers& edge_ids, int64_t* edge, int64_t size) {
  if (!edge_ids.given()) return;
  for (int64_t i = 0; i < size; ++i) {
    if (i + kPrefetchAhead < size) __builtin_prefetch(edge_ids.address(edge[i + kPrefetchAhead]));
    edge[i] = edge_ids[edge[i]];
  }
}

// Where the targets of one subgraph of all seeds get their randomness from: see sample_block.
struct OneSeed {
  uint64_t seed;
  static constexpr bool has_times() { return false; }
  uint64_t seed_of(int64_t) const { return seed; }
  int64_t time_of(int64_t) const { return 0; }
};

// Samples the rows of `targets` into a block. The randomness of target number i is (origin.seed_of(i), stream, target);
// with times it sees what origin.time_of(i) lets it see.
template <typename Origin>
bool sample_block(const Request& request, const Relation& relation, RowSampler& sampler, const int64_t* targets,
                  const Origin& origin, uint64_t stream, Block& block) {
  const int64_t num_targets = static_cast<int64_t>(block.count.size());
  const auto [full, rows] = sampler.room(num_targets);
  for_each_row(relation, targets, num_targets, [&](int64_t i, Row row) {
    full[i] = row;
    if (origin.has_times() && relation.time && row.size() > 0) {  // where visible() looks first
      __builtin_prefetch(relation.time + row.end - 1);
      __builtin_prefetch(relation.time + row.begin + row.size() / 2);
    }
  });
  int64_t bound = 0;
  for (int64_t i = 0; i < num_targets; ++i) {
    rows[i] = origin.has_times() ? visible(relation, full[i], origin.time_of(i), request.window) : full[i];
    bound += sampler.bound(relation, rows[i]);
  }
  block.edge = std::make_unique_for_overwrite<int64_t[]>(bound);
  block.source = std::make_unique_for_overwrite<int64_t[]>(bound);
  int64_t size = 0;
  int64_t* const edge = block.edge.get();
  const auto random = [&](int64_t i) { return Random(origin.seed_of(i), stream, targets[i]); };
  for (int64_t i = 0; i < num_targets + kRowsAhead; ++i) {
    if (i < num_targets) sampler.prepare(i, relation, rows[i], full[i], random(i));
    const int64_t r = i - kRowsAhead;
    if (r < 0) continue;
    const int64_t count = sampler.sample(r, relation, rows[r], full[r], random(r), edge + size);
    block.count[r] = static_cast<uint32_t>(count);
    size += count;
  }
  block.size = size;
  const int64_t num_nodes = request.num_nodes[relation.source_type];
  const bool valid = read_sources(relation.col, edge, size, num_nodes, block.source.get());
  read_edge_ids(relation.edge_ids, edge, size);
  return valid;
}

}  // namespace gossamer::sampling
