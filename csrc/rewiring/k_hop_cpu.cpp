#include "rewiring/search.h"

#define GOSSAMER_KERNEL "rewiring/k_hop.h"
#include "common/foreach_isa.h"
#include "common/huge_pages.h"
#include "common/tensor.h"

#include <atomic>
#include <numeric>
#include <tuple>
#include <utility>
#include <vector>

namespace gossamer {
namespace {

constexpr int64_t kNarrowSources = 256;     // a block up to here is searched in sets of its own width
constexpr int64_t kSmallBlockNodes = 4096;  // a block up to here is searched by one thread, a larger one by all
constexpr int64_t kRunBytes = 32 << 20;     // for what several passes over a block find
constexpr int64_t kGrainBlocks = 8;
constexpr int64_t kGrainNodes = 512;

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

// Runs the passes of one block of nodes [first, last). `each(f)` calls f(begin, end) for all of its nodes;
// visitor.level advances nodes by a level and returns whether it found anything, visitor.finish comes after every pass.
template <typename index_t, typename Each, typename Visitor>
void search_block(const Search<index_t>& graph, int64_t first, int64_t last, int64_t max_hops, const Each& each,
                  Visitor&& visitor) {
  const auto start = GOSSAMER_SELECT_ISA(start_search<index_t>);
  const Sets sets(last - first);
  Search<index_t> search = block_of(graph, first, last);
  sets.bind(search);
  for (int64_t source = 0; source < search.num_nodes; source += kSetSources) {
    search.first_source = first + source;
    search.num_sources = std::min(kSetSources, search.num_nodes - source);
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

// Searches every block of more than kNarrowSources nodes, each with a visitor of its own: small ones side by side, one
// thread each; in large ones all threads share the nodes of a level.
template <typename index_t, typename Visit>
void search_wide_blocks(const Search<index_t>& graph, const Tensor& blocks, int64_t max_hops, const Visit& visit) {
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
    const int64_t first = bounds[b], last = bounds[b + 1];
    if (last - first <= kSmallBlockNodes) continue;
    const auto each = [&](const auto& f) { torch::stable::parallel_for(first, last, kGrainNodes, f); };
    search_block(graph, first, last, max_hops, each, visit(last - first));
  }
}

// counts[hop, v] += sources found.
template <typename index_t>
struct Counter {
  int32_t* counts;
  int64_t num_nodes;
  decltype(&scalar::count_level<index_t>) count = GOSSAMER_SELECT_ISA(count_level<index_t>);

  bool level(const Search<index_t>& search, int64_t hop, int64_t begin, int64_t end) const {
    return count(search, hop, counts + hop * num_nodes, begin, end);
  }
  template <typename Each>
  void finish(const Search<index_t>&, const Each&) const {}
};

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

void check_graph(const Tensor& rowptr, const Tensor& col, const char* function) {
  GOSSAMER_CHECK(
      rowptr.dim() == 1 && rowptr.size(0) >= 1 && rowptr.is_contiguous() && rowptr.scalar_type() == ScalarType::Long,
      function, ": rowptr must be a contiguous int64 vector with at least one element");
  GOSSAMER_CHECK(col.dim() == 1 && col.is_contiguous() &&
                     (col.scalar_type() == ScalarType::Int || col.scalar_type() == ScalarType::Long),
                 function, ": col must be a contiguous int32 or int64 vector");
  GOSSAMER_CHECK(rowptr.size(0) <= std::numeric_limits<int32_t>::max(), function, ": too many nodes for 32-bit ids");
}

template <typename F>
void dispatch_index(const Tensor& col, const F& f) {
  col.scalar_type() == ScalarType::Int ? f(int32_t{}) : f(int64_t{});
}

// Bounds [num_blocks + 1] of the finest cut of the nodes into ranges that no edge crosses. Reads every edge, so here is
// where a malformed graph is found out.
Tensor diagonal_blocks_cpu(const Tensor& rowptr, const Tensor& col) {
  check_graph(rowptr, col, "diagonal_blocks");
  const int64_t num_nodes = rowptr.size(0) - 1;
  const int64_t* ptr = rowptr.const_data_ptr<int64_t>();
  GOSSAMER_CHECK(ptr[0] == 0 && ptr[num_nodes] == col.numel(), "diagonal_blocks: rowptr must go from 0 to ",
                 col.numel());
  std::vector<int64_t> lowest(num_nodes + 1, num_nodes);  // the smallest node that row v or a later one touches
  std::vector<int64_t> highest(num_nodes);
  dispatch_index(col, [&](auto index) {
    const auto* ids = col.const_data_ptr<decltype(index)>();
    for (int64_t v = 0; v < num_nodes; ++v) {
      GOSSAMER_CHECK(ptr[v] <= ptr[v + 1] && ptr[v + 1] <= col.numel(),
                     "diagonal_blocks: rowptr must ascend, but not at ", v);
      int64_t low = v, high = v;
      for (int64_t e = ptr[v]; e < ptr[v + 1]; ++e) {
        low = std::min<int64_t>(low, ids[e]);
        high = std::max<int64_t>(high, ids[e]);
      }
      GOSSAMER_CHECK(low >= 0 && high < num_nodes, "k_hop: node ids must be in [0, ", num_nodes, "), got ",
                     low < 0 ? low : high);
      lowest[v] = low;
      highest[v] = high;
    }
  });
  for (int64_t v = num_nodes - 1; v >= 0; --v) lowest[v] = std::min(lowest[v], lowest[v + 1]);
  std::vector<int64_t> bounds = {0};
  for (int64_t v = 0, high = -1; v < num_nodes; ++v) {
    high = std::max(high, highest[v]);
    if (high == v && lowest[v + 1] > v) bounds.push_back(v + 1);
  }
  Tensor blocks = torch::stable::new_empty(rowptr, {static_cast<int64_t>(bounds.size())});
  std::copy(bounds.begin(), bounds.end(), blocks.mutable_data_ptr<int64_t>());
  return blocks;
}

// Places [num_blocks + 1] behind each other for what every block [first, last) keeps: size(first, last) bytes if it is
// narrow, else none.
template <typename Size>
std::vector<int64_t> places_of(const Tensor& blocks, const Size& size) {
  const int64_t* bounds = blocks.const_data_ptr<int64_t>();
  std::vector<int64_t> places(blocks.size(0), 0);
  for (int64_t b = 0; b + 1 < blocks.size(0); ++b) {
    places[b + 1] = places[b] + (bounds[b + 1] - bounds[b] <= kNarrowSources ? size(bounds[b], bounds[b + 1]) : 0);
  }
  return places;
}

// Searches every block of at most kNarrowSources nodes, side by side. Where `kept` is not null it takes what
// keep_narrow keeps of them, block after block, and has room for it at `places` and kFreeIds behind each; returns how
// many bytes it took.
template <typename index_t>
int64_t search_narrow_blocks(const Search<index_t>& graph, const Tensor& blocks, int64_t max_hops, Tensor& counts,
                             const std::vector<int64_t>& places, uint8_t* kept) {
  const int64_t* bounds = blocks.const_data_ptr<int64_t>();
  const int64_t num_blocks = blocks.size(0) - 1, num_nodes = counts.size(1);
  const auto keep = GOSSAMER_SELECT_ISA(keep_narrow<index_t>);
  int32_t* data = counts.mutable_data_ptr<int32_t>();
  const auto place = [&](int64_t b) { return kept + places[b] + b * kFreeIds; };
  std::vector<int64_t> sizes(num_blocks, 0);  // of what a range of blocks keeps, at the number of its first block
  torch::stable::parallel_for(0, num_blocks, kGrainBlocks, [&](int64_t begin, int64_t end) {
    uint8_t* out = kept == nullptr ? nullptr : place(begin);
    for (int64_t b = begin; b < end; ++b) {
      if (bounds[b + 1] - bounds[b] > kNarrowSources) continue;
      out = keep(block_of(graph, bounds[b], bounds[b + 1]), max_hops, data, num_nodes, out);
    }
    if (kept != nullptr) sizes[begin] = out - place(begin);
  });
  int64_t num_kept = 0;
  for (int64_t b = 0; b < num_blocks; ++b) {
    if (sizes[b] > 0) std::memmove(kept + num_kept, place(b), sizes[b]);
    num_kept += sizes[b];
  }
  return num_kept;
}

// The search of narrow blocks, and what it keeps: all of it where that is at most max_kept bytes, else nothing. Where
// it could be more it is counted first.
template <typename index_t>
Tensor keep_narrow_blocks(const Search<index_t>& graph, const Tensor& blocks, int64_t max_hops, Tensor& counts,
                          int64_t max_kept) {
  std::vector<int64_t> places =
      places_of(blocks, [](int64_t first, int64_t last) { return (last - first) * (last - first - 1); });
  if (places.back() > max_kept) {
    search_narrow_blocks(graph, blocks, max_hops, counts, places, nullptr);
    const int32_t* found = counts.const_data_ptr<int32_t>();
    places = places_of(blocks, [&](int64_t first, int64_t last) {
      int64_t size = 0;
      for (int64_t hop = 0; hop < max_hops; ++hop) {
        const int32_t* row = found + hop * counts.size(1);
        size = std::accumulate(row + first, row + last, size);
      }
      return size;
    });
    if (places.back() > max_kept) return torch::stable::new_empty(counts, {0}, ScalarType::Byte);
  }
  Tensor kept = torch::stable::new_empty(counts, {places.back() + blocks.size(0) * kFreeIds}, ScalarType::Byte);
  uint8_t* bytes = kept.mutable_data_ptr<uint8_t>();
  return torch::stable::narrow(kept, 0, 0, search_narrow_blocks(graph, blocks, max_hops, counts, places, bytes));
}

std::tuple<Tensor, Tensor> k_hop_count_cpu(const Tensor& rowptr, const Tensor& col, const Tensor& blocks,
                                           int64_t max_hops, int64_t max_kept) {
  check_graph(rowptr, col, "k_hop_count");
  const int64_t num_nodes = rowptr.size(0) - 1;
  Tensor counts = torch::stable::new_zeros(rowptr, {max_hops, num_nodes}, ScalarType::Int);
  Tensor kept;
  dispatch_index(col, [&](auto index) {
    using index_t = decltype(index);
    const Search<index_t> graph{rowptr.const_data_ptr<int64_t>(), col.const_data_ptr<index_t>()};
    kept = keep_narrow_blocks(graph, blocks, max_hops, counts, max_kept);
    const Counter<index_t> counter{counts.mutable_data_ptr<int32_t>(), num_nodes};
    search_wide_blocks(graph, blocks, max_hops, [&](int64_t) { return counter; });
  });
  return {counts, kept};
}

// Writes the kept pairs of narrow blocks to where their rows begin, starts [max_hops, num_nodes].
void emit_kept(const Tensor& kept, const Tensor& blocks, const Tensor& shell_rowptr, const std::vector<int64_t>& bases,
               int32_t* pairs) {
  const int64_t* bounds = blocks.const_data_ptr<int64_t>();
  const int64_t num_blocks = blocks.size(0) - 1, max_hops = shell_rowptr.size(0), num_rows = shell_rowptr.size(1);
  const int64_t* starts = shell_rowptr.const_data_ptr<int64_t>();
  const auto size = [&](int64_t hop, int64_t first, int64_t last) {
    return starts[hop * num_rows + last] - starts[hop * num_rows + first];
  };
  const std::vector<int64_t> places = places_of(blocks, [&](int64_t first, int64_t last) {
    int64_t pairs_of_block = 0;
    for (int64_t hop = 0; hop < max_hops; ++hop) pairs_of_block += size(hop, first, last);
    return pairs_of_block;
  });
  GOSSAMER_CHECK(places.back() == kept.numel(), "k_hop: kept must be what k_hop_count kept, ", places.back(),
                 " pairs, got ", kept.numel());
  const auto widen = GOSSAMER_SELECT_ISA(widen_ids);
  torch::stable::parallel_for(0, num_blocks, kGrainBlocks, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      if (places[b + 1] == places[b]) continue;
      const uint8_t* ids = kept.const_data_ptr<uint8_t>() + places[b];
      for (int64_t hop = 0; hop < max_hops; ++hop) {
        const int64_t num_ids = size(hop, bounds[b], bounds[b + 1]);
        widen(ids, num_ids, static_cast<int32_t>(bounds[b]), pairs + bases[hop] + starts[hop * num_rows + bounds[b]]);
        ids += num_ids;
      }
    }
  });
}

// The sources at distance k from node i, in row i of shell k: columns of all shells behind each other.
//   kept from k_hop_count; shell_rowptr [max_hops, num_nodes + 1], every shell from 0 on
Tensor k_hop_cpu(const Tensor& rowptr, const Tensor& col, const Tensor& blocks, const Tensor& kept,
                 const Tensor& shell_rowptr, int64_t num_pairs) {
  check_graph(rowptr, col, "k_hop");
  GOSSAMER_CHECK_TENSOR(shell_rowptr, 2, "k_hop");
  Tensor shell_col = with_huge_pages(torch::stable::new_empty(rowptr, {num_pairs}, ScalarType::Int));
  if (num_pairs == 0) return shell_col;
  const int64_t num_nodes = rowptr.size(0) - 1, max_hops = shell_rowptr.size(0);
  const int64_t* starts = shell_rowptr.const_data_ptr<int64_t>();
  std::vector<int64_t> bases(max_hops + 1, 0);
  for (int64_t hop = 0; hop < max_hops; ++hop) {
    bases[hop + 1] = bases[hop] + starts[hop * (num_nodes + 1) + num_nodes];
  }
  GOSSAMER_CHECK(bases.back() == num_pairs, "k_hop: num_pairs must be ", bases.back(), ", got ", num_pairs);
  int32_t* pairs = shell_col.mutable_data_ptr<int32_t>();
  emit_kept(kept, blocks, shell_rowptr, bases, pairs);
  if (kept.numel() == num_pairs) return shell_col;
  std::vector<int64_t> ends(starts, starts + shell_rowptr.numel());  // of the rows so far, within their shell
  dispatch_index(col, [&](auto index) {
    using index_t = decltype(index);
    const Search<index_t> graph{rowptr.const_data_ptr<int64_t>(), col.const_data_ptr<index_t>()};
    const Shells shells{starts, ends.data(), num_nodes + 1, bases.data(), pairs};
    const auto emitter = [&](int64_t num_block_nodes) { return Emitter<index_t>(shells, max_hops, num_block_nodes); };
    search_wide_blocks(graph, blocks, max_hops, emitter);
  });
  return shell_col;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) {
  m.impl("diagonal_blocks", TORCH_BOX(&diagonal_blocks_cpu));
  m.impl("k_hop_count", TORCH_BOX(&k_hop_count_cpu));
  m.impl("k_hop", TORCH_BOX(&k_hop_cpu));
}

}  // namespace gossamer
