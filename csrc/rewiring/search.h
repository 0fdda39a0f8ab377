// What the CPU and CUDA versions of the k-hop search share.
#pragma once

#include <cstdint>

namespace gossamer {

// A set of sources: one bit each, kSetWords words of 64 bits.
constexpr int64_t kSetWords = 8;
constexpr int64_t kSetSources = 64 * kSetWords;
constexpr int64_t kFreeIds = 8;                  // behind a list of ids, that may be written over
constexpr int64_t kMaxRunWords = 8 * kSetWords;  // of several passes over the same row, emitted together

// One pass of the search: the sources [first_source, first_source + num_sources) within a diagonal block of the graph.
//   visited, frontier, fresh [num_nodes, kSetWords], for the nodes [first_node, first_node + num_nodes) of the block
template <typename index_t>
struct Search {
  const int64_t* rowptr;
  const index_t* col;
  int64_t first_node;
  int64_t num_nodes;
  int64_t first_source;
  int64_t num_sources;
  uint64_t* visited;
  uint64_t* frontier;
  uint64_t* fresh;
};

}  // namespace gossamer
