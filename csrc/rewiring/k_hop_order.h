// The order in which counting goes through a large block of the graph. Torch-free.
#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

#include "rewiring/search.h"

namespace gossamer {

// Lists of numbers: list i is items[begins[i]] to items[begins[i + 1]].
struct Lists {
  std::vector<int64_t> begins;
  std::vector<int32_t> items;
};

// Turns `num_from` lists around: list j of the `num_to` holds, ascending, every i whose list has j. each(i, f) calls f
// for what list i has.
template <typename Each>
Lists turned(int64_t num_from, int64_t num_to, const Each& each) {
  Lists lists{std::vector<int64_t>(num_to + 2), {}};
  for (int64_t i = 0; i < num_from; ++i) each(i, [&](int64_t j) { ++lists.begins[j + 2]; });
  std::partial_sum(lists.begins.begin(), lists.begins.end(), lists.begins.begin());
  lists.items.resize(lists.begins.back());
  for (int64_t i = 0; i < num_from; ++i) {
    each(i, [&](int64_t j) { lists.items[lists.begins[j + 1]++] = static_cast<int32_t>(i); });
  }
  lists.begins.pop_back();  // the begin of every list has moved to its end, which is the next one's begin
  return lists;
}

// The nodes of a block in another order: those with in-edges first, [0, num_reached), and all with out-edges behind
// each other, [first_source, num_nodes). Those with neither, many where degrees follow a power law, are left out. The
// others go by the order of magnitude of their in-degree, so that sets that are read often lie close, and sources of
// like reach share a pass; within one magnitude they keep their order, which may be one of locality.
struct OrderedBlock {
  int64_t num_reached;
  int64_t first_source;
  int64_t num_nodes;
  std::vector<int32_t> nodes;  // at every place, counted from the first of the block
  Lists rows;                  // of places [0, num_reached): the places of in-neighbours, ascending
};

template <typename index_t>
OrderedBlock order_block(const Search<index_t>& graph, int64_t first, int64_t last) {
  constexpr int kUnread = 0, kUnreached = 65, kAlone = 66;
  const int64_t* rowptr = graph.rowptr + first;
  const int64_t size = last - first;
  std::vector<uint8_t> is_source(size, 0);
  for (int64_t e = rowptr[0]; e < rowptr[size]; ++e) is_source[graph.col[e] - first] = 1;
  const auto kind_of = [&](int64_t v) {
    const int64_t degree = rowptr[v + 1] - rowptr[v];
    if (degree == 0) return is_source[v] ? kUnreached : kAlone;
    return is_source[v] ? 1 + __builtin_clzll(degree) : kUnread;
  };
  const Lists by_kind = turned(size, kAlone + 1, [&](int64_t v, const auto& f) { f(kind_of(v)); });
  OrderedBlock block{
      by_kind.begins[kUnreached], by_kind.begins[kUnread + 1], by_kind.begins[kAlone], by_kind.items, {}};
  std::vector<int32_t> places(size);
  for (int64_t p = 0; p < size; ++p) places[block.nodes[p]] = static_cast<int32_t>(p);
  const Lists targets = turned(block.num_reached, block.num_nodes, [&](int64_t p, const auto& f) {
    const int64_t v = block.nodes[p];
    for (int64_t e = rowptr[v]; e < rowptr[v + 1]; ++e) f(places[graph.col[e] - first]);
  });
  block.rows = turned(block.num_nodes, block.num_reached, [&](int64_t p, const auto& f) {
    for (int64_t e = targets.begins[p]; e < targets.begins[p + 1]; ++e) f(targets.items[e]);
  });
  return block;
}

}  // namespace gossamer
