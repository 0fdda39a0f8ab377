// Blocks of the graph that are too large for sets of their own width: counted, and emitted, in passes of kSetSources.
// Included behind foreach_isa.h, which compiles the loops of k_hop.h.
#pragma once

#include "common/huge_pages.h"
#include "common/tensor.h"
#include "rewiring/k_hop_order.h"

#include <atomic>
#include <utility>
#include <vector>

namespace gossamer {

constexpr int64_t kNarrowSources = 256;     // a block up to here is searched in sets of its own width
constexpr int64_t kSmallBlockNodes = 4096;  // a block up to here is searched by one thread, a larger one by all
constexpr int64_t kRunBytes = 32 << 20;     // for what several passes over a block find
constexpr int64_t kGrainBlocks = 8;
constexpr int64_t kGrainNodes = 512;
constexpr int64_t kGrainEdges = 8192;

// The three sets of every node of a block, on cache lines of their own.
class Sets {
 public:
  explicit Sets(int64_t num_nodes) : size_(num_nodes * kSetWords), words_(aligned_memory<uint64_t>(3 * size_)) {
    GOSSAMER_CHECK(words_ != nullptr, "k_hop: no memory for the search of a block of ", num_nodes, " nodes");
  }
  template <typename index_t>
  void bind(Search<index_t>& search) const {
    search.visited = words_.get();
    search.frontier = words_.get() + size_;
    search.fresh = words_.get() + 2 * size_;
  }
  // Nodes from here on are in no set: a search does not write them, but their neighbours read them.
  void clear_from(int64_t node) const {
    for (int64_t set = 0; set < 3; ++set) {
      std::fill(words_.get() + set * size_ + node * kSetWords, words_.get() + (set + 1) * size_, 0);
    }
  }

 private:
  int64_t size_;
  AlignedMemory<uint64_t> words_;
};

template <typename index_t>
Search<index_t> block_of(Search<index_t> graph, int64_t first, int64_t last) {
  graph.first_node = first;
  graph.num_nodes = last - first;
  return graph;
}

// Runs the passes over the sources [first, last) of a block whose sets are bound. `each(f)` calls f(begin, end) for all
// of its nodes; visitor.level advances nodes by a level and returns whether it found anything, visitor.finish comes
// after every pass.
template <typename index_t, typename Each, typename Visitor>
void search_sources(Search<index_t> search, int64_t first, int64_t last, int64_t max_hops, const Each& each,
                    Visitor&& visitor) {
  const auto start = GOSSAMER_SELECT_ISA(start_search<index_t>);
  for (int64_t source = first; source < last; source += kSetSources) {
    search.first_source = source;
    search.num_sources = std::min(kSetSources, last - source);
    each([&](int64_t begin, int64_t end) { start(search, begin, end); });
    for (int64_t hop = 0; hop < max_hops; ++hop) {
      std::atomic<bool> any = false;
      each([&](int64_t begin, int64_t end) {
        if (visitor.level(search, hop, begin, end)) any = true;
      });
      if (!any) break;
      std::swap(search.frontier, search.fresh);
    }
    visitor.finish(search, each);
  }
}

template <typename index_t, typename Each, typename Visitor>
void search_block(const Search<index_t>& graph, int64_t first, int64_t last, int64_t max_hops, const Each& each,
                  Visitor&& visitor) {
  const Sets sets(last - first);
  Search<index_t> search = block_of(graph, first, last);
  sets.bind(search);
  search_sources(search, first, last, max_hops, each, visitor);
}

// Searches every block of more than kNarrowSources nodes: small ones side by side, one thread each, with a visitor of
// their own, visit(number of nodes); visit_large(first, last) in large ones, where all threads share the nodes of a
// level.
template <typename index_t, typename Visit, typename VisitLarge>
void search_wide_blocks(const Search<index_t>& graph, const Tensor& blocks, int64_t max_hops, const Visit& visit,
                        const VisitLarge& visit_large) {
  const int64_t* bounds = blocks.const_data_ptr<int64_t>();
  const int64_t num_blocks = blocks.size(0) - 1;
  torch::stable::parallel_for(0, num_blocks, kGrainBlocks, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      const int64_t first = bounds[b], last = bounds[b + 1];
      if (last - first <= kNarrowSources || last - first > kSmallBlockNodes) continue;
      search_block(graph, first, last, max_hops, [&](const auto& f) { f(first, last); }, visit(last - first));
    }
  });
  for (int64_t b = 0; b < num_blocks; ++b) {
    if (bounds[b + 1] - bounds[b] > kSmallBlockNodes) visit_large(bounds[b], bounds[b + 1]);
  }
}

// counts[hop, v] += sources found.
template <typename index_t>
struct Counter {
  int32_t* counts;
  int64_t num_nodes;
  int64_t max_hops;
  decltype(&scalar::count_level<index_t>) count = GOSSAMER_SELECT_ISA(count_level<index_t>);
  decltype(&scalar::count_last_level<index_t>) count_last = GOSSAMER_SELECT_ISA(count_last_level<index_t>);

  bool level(const Search<index_t>& search, int64_t hop, int64_t begin, int64_t end) const {
    int32_t* const found = counts + hop * num_nodes;
    if (hop == 0 || hop + 1 < max_hops) return count(search, hop, found, begin, end);
    count_last(search, found, begin, end);
    return true;
  }
  template <typename Each>
  void finish(const Search<index_t>&, const Each&) const {}
};

// The same for a block whose rows ascend: the sources of the first level are taken from where a pass left them.
struct OrderedCounter : Counter<int32_t> {
  int64_t* next;
  decltype(&scalar::count_first_level<int32_t>) count_first = GOSSAMER_SELECT_ISA(count_first_level<int32_t>);

  bool level(const Search<int32_t>& search, int64_t hop, int64_t begin, int64_t end) const {
    if (hop == 0) return count_first(search, next, counts, begin, end);
    return Counter::level(search, hop, begin, end);
  }
};

// counts [max_hops, num_nodes] of the block of nodes [first, last), in the order of order_block.
template <typename index_t>
void count_large_block(const Search<index_t>& graph, int64_t first, int64_t last, int64_t max_hops, int32_t* counts,
                       int64_t num_nodes) {
  const OrderedBlock block = order_block(graph, first, last);
  const std::vector<int64_t>& rowptr = block.rows.begins;
  const Sets sets(block.num_nodes);
  Search<int32_t> search{rowptr.data(), block.rows.items.data(), 0, block.num_reached};
  sets.bind(search);
  sets.clear_from(block.num_reached);
  std::vector<int64_t> next(rowptr.begin(), rowptr.end() - 1);
  std::vector<int32_t> found(max_hops * block.num_reached, 0);
  // Threads share edges, not nodes: the first nodes have most of them. No row is empty, so every one begins in one
  // share.
  const auto row_from = [&](int64_t edge) {
    return std::lower_bound(rowptr.begin(), rowptr.end(), edge) - rowptr.begin();
  };
  const auto each = [&](const auto& f) {
    torch::stable::parallel_for(0, rowptr.back(), kGrainEdges,
                                [&](int64_t begin, int64_t end) { f(row_from(begin), row_from(end)); });
  };
  const OrderedCounter counter{{found.data(), block.num_reached, max_hops}, next.data()};
  search_sources(search, block.first_source, block.num_nodes, max_hops, each, counter);
  for (int64_t hop = 0; hop < max_hops; ++hop) {
    for (int64_t p = 0; p < block.num_reached; ++p) {
      counts[hop * num_nodes + first + block.nodes[p]] = found[hop * block.num_reached + p];
    }
  }
}

// Where the pairs of all shells go: row v of shell k ends, so far, at col[bases[k] + ends[k, v]].
struct Shells {
  const int64_t* starts;
  int64_t* ends;
  int64_t num_rows;
  const int64_t* bases;
  int32_t* col;
};

// Emits what a search finds. A pass finds few hundred bytes for each of many rows: written at once they cost a miss of
// the cache per row. What several passes find is kept in bits, as far as kRunBytes go, and written row by row.
template <typename index_t>
class Emitter {
 public:
  Emitter(const Shells& shells, int64_t max_hops, int64_t num_nodes)
      : shells_(shells), max_hops_(max_hops), num_passes_(num_passes(max_hops, num_nodes)) {
    if (num_passes_ == 1) return;
    const int64_t size = max_hops * num_nodes * num_passes_ * kSetWords;
    words_ = aligned_memory<uint64_t>(size);
    GOSSAMER_CHECK(words_ != nullptr, "k_hop: no memory for what is found in a block of ", num_nodes, " nodes");
    std::fill_n(words_.get(), size, 0);
  }

  bool level(const Search<index_t>& search, int64_t hop, int64_t begin, int64_t end) {
    const bool any = find_(search, hop, begin, end);
    const uint64_t* fresh = search.fresh + (begin - search.first_node) * kSetWords;
    if (num_passes_ == 1) {
      if (any) emit(search, fresh, search.first_source, hop, begin, end);
    } else {
      for (int64_t v = begin; v < end; ++v, fresh += kSetWords) {
        std::copy_n(fresh, kSetWords, row(search, hop, v) + pass_ * kSetWords);
      }
    }
    return any;
  }

  template <typename Each>
  void finish(const Search<index_t>& search, const Each& each) {
    const bool last = search.first_source + search.num_sources == search.first_node + search.num_nodes;
    if (num_passes_ == 1 || (++pass_ < num_passes_ && !last)) return;
    const int64_t first_source = search.first_source - (pass_ - 1) * kSetSources;
    pass_ = 0;
    each([&](int64_t begin, int64_t end) {
      for (int64_t hop = 0; hop < max_hops_; ++hop) {
        uint64_t* const words = row(search, hop, begin);
        emit(search, words, first_source, hop, begin, end);
        std::fill(words, row(search, hop, end), 0);
      }
    });
  }

 private:
  static int64_t num_passes(int64_t max_hops, int64_t num_nodes) {
    const int64_t bytes = max_hops * num_nodes * kSetWords * sizeof(uint64_t);
    return std::clamp<int64_t>(std::min(kRunBytes / bytes, (num_nodes + kSetSources - 1) / kSetSources), 1,
                               kMaxRunWords / kSetWords);
  }
  uint64_t* row(const Search<index_t>& search, int64_t hop, int64_t v) const {
    return words_.get() + (hop * search.num_nodes + v - search.first_node) * num_passes_ * kSetWords;
  }
  void emit(const Search<index_t>& search, const uint64_t* words, int64_t first_source, int64_t hop, int64_t begin,
            int64_t end) const {
    const bool whole = num_passes_ * kSetSources >= search.num_nodes;
    const int64_t shell = hop * shells_.num_rows;
    emit_(words, num_passes_ * kSetWords, first_source, whole, shells_.ends + shell, shells_.starts + shell,
          shells_.col + shells_.bases[hop], begin, end);
  }

  const Shells& shells_;
  int64_t max_hops_, num_passes_, pass_ = 0;
  AlignedMemory<uint64_t> words_;
  decltype(&scalar::find_level<index_t>) find_ = GOSSAMER_SELECT_ISA(find_level<index_t>);
  decltype(&scalar::emit_rows) emit_ = GOSSAMER_SELECT_ISA(emit_rows);
};

}  // namespace gossamer
