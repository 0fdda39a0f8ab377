#include "rewiring/search.h"

#define GOSSAMER_KERNEL "rewiring/k_hop.h"
#include "common/foreach_isa.h"
#include "common/huge_pages.h"
#include "common/tensor.h"
#include "rewiring/k_hop_wide.h"

#include <numeric>
#include <tuple>
#include <utility>
#include <vector>

namespace gossamer {
namespace {

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
  Tensor blocks = allocate(rowptr, {static_cast<int64_t>(bounds.size())});
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
    if (places.back() > max_kept) return allocate(counts, {0}, ScalarType::Byte);
  }
  Tensor kept = allocate(counts, {places.back() + blocks.size(0) * kFreeIds}, ScalarType::Byte);
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
    int32_t* data = counts.mutable_data_ptr<int32_t>();
    const Counter<index_t> counter{data, num_nodes, max_hops};
    const auto count_large = [&](int64_t first, int64_t last) {
      count_large_block(graph, first, last, max_hops, data, num_nodes);
    };
    search_wide_blocks(graph, blocks, max_hops, [&](int64_t) { return counter; }, count_large);
  });
  return {counts, kept};
}

// rowptr[k, i] = sum of counts[k, :i]
Tensor row_pointers_cpu(const Tensor& counts) {
  GOSSAMER_CHECK_TENSOR(counts, 2, "row_pointers");
  GOSSAMER_CHECK(counts.scalar_type() == ScalarType::Int, "row_pointers: counts must be int32");
  const int64_t num_shells = counts.size(0), num_nodes = counts.size(1);
  Tensor rowptr = with_huge_pages(allocate(counts, {num_shells, num_nodes + 1}, ScalarType::Long));
  const int32_t* sizes = counts.const_data_ptr<int32_t>();
  int64_t* starts = rowptr.mutable_data_ptr<int64_t>();
  torch::stable::parallel_for(0, num_shells, 1, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      int64_t* const row = starts + k * (num_nodes + 1);
      int64_t sum = row[0] = 0;
      for (int64_t i = 0; i < num_nodes; ++i) row[i + 1] = sum += sizes[k * num_nodes + i];
    }
  });
  return rowptr;
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
  Tensor shell_col = with_huge_pages(allocate(rowptr, {num_pairs}, ScalarType::Int));
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
    const auto emit_large = [&](int64_t first, int64_t last) {
      const auto each = [&](const auto& f) { torch::stable::parallel_for(first, last, kGrainNodes, f); };
      search_block(graph, first, last, max_hops, each, emitter(last - first));
    };
    search_wide_blocks(graph, blocks, max_hops, emitter, emit_large);
  });
  return shell_col;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) {
  m.impl("diagonal_blocks", TORCH_BOX(&diagonal_blocks_cpu));
  m.impl("k_hop_count", TORCH_BOX(&k_hop_count_cpu));
  m.impl("row_pointers", TORCH_BOX(&row_pointers_cpu));
  m.impl("k_hop", TORCH_BOX(&k_hop_cpu));
}

}  // namespace gossamer
