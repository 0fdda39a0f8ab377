#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include "common/tensor.h"
#include "sampling/sample_disjoint.h"
#include "sampling/sample_shared.h"

namespace gossamer {
namespace {

using sampling::Block;
using sampling::Relation;
using sampling::Request;
using sampling::Sample;
using sampling::Temporal;
using Tensors = std::vector<Tensor>;

// Local ids must fit between the base of a call and the end of 32 bits.
constexpr uint32_t kLargestBase = uint32_t{1} << 31;

Temporal temporal_of(const std::string& name) {
  if (name == "uniform") return Temporal::kUniform;
  if (name == "last") return Temporal::kLast;
  GOSSAMER_CHECK(name == "recency", "neighbor_sample: temporal must be uniform, last or recency, got ", name);
  return Temporal::kRecency;
}

std::vector<std::vector<int64_t>> to_vectors(const Tensors& tensors) {
  std::vector<std::vector<int64_t>> values;
  for (const Tensor& tensor : tensors) {
    GOSSAMER_CHECK_TENSOR(tensor, 1, "neighbor_sample");
    const int64_t* data = tensor.const_data_ptr<int64_t>();
    values.emplace_back(data, data + tensor.numel());
  }
  return values;
}

// The data of one relation's tensor, null where the list is empty; the size is that of the columns.
template <typename scalar_t>
const scalar_t* edge_data(const Tensors& list, size_t r, const Tensor& col) {
  if (list.empty()) return nullptr;
  GOSSAMER_CHECK(list[r].is_contiguous() && list[r].numel() == col.numel(),
                 "neighbor_sample: weights, times and edge ids must have one contiguous entry per edge, got ",
                 list[r].numel());
  return list[r].const_data_ptr<scalar_t>();
}

Relation relation_of(const Tensor& rowptr, const Tensor& col) {
  GOSSAMER_CHECK_TENSOR(rowptr, 1, "neighbor_sample");
  GOSSAMER_CHECK_TENSOR(col, 1, "neighbor_sample");
  Relation relation;
  relation.rowptr = rowptr.const_data_ptr<int64_t>();
  if (col.scalar_type() == ScalarType::Int) {
    relation.col32 = col.const_data_ptr<int32_t>();
  } else {
    GOSSAMER_CHECK(col.scalar_type() == ScalarType::Long, "neighbor_sample: col must be int32 or int64");
    relation.col64 = col.const_data_ptr<int64_t>();
  }
  return relation;
}

// Runs its argument on every thread that torch would use.
struct Parallel {
  template <typename Worker>
  void operator()(const Worker& worker) const {
    torch::stable::parallel_for(0, torch::stable::get_num_threads(), 1, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) worker();
    });
  }
};

// The table that is kept between calls ends with the base of the next call.
Sample sample_with_table(const Request& request, Tensor& table) {
  GOSSAMER_CHECK_TENSOR(table, 1, "neighbor_sample");
  int64_t total = 0;
  for (const int64_t n : request.num_nodes) total += n;
  GOSSAMER_CHECK(table.numel() == total + 1, "neighbor_sample: table must have one entry per node and one more, got ",
                 table.numel());
  uint32_t* entries = reinterpret_cast<uint32_t*>(table.mutable_data_ptr<int32_t>());
  uint32_t& next_base = entries[total];
  if (next_base == 0 || next_base > kLargestBase) {
    std::memset(entries, 0, table.numel() * sizeof(uint32_t));
    next_base = 1;
  }
  Sample sample = sampling::sample_shared(request, entries, next_base, Parallel{});
  size_t largest = 0;
  for (const auto& nodes : sample.node) largest = std::max(largest, nodes.size());
  next_base += static_cast<uint32_t>(largest);
  return sample;
}

Tensor new_vector(int64_t size) { return torch::stable::empty({size}, ScalarType::Long); }

Tensor to_tensor(const std::vector<int64_t>& values) {
  Tensor tensor = new_vector(static_cast<int64_t>(values.size()));
  if (!values.empty()) std::memcpy(tensor.mutable_data_ptr<int64_t>(), values.data(), values.size() * sizeof(int64_t));
  return tensor;
}

struct EdgeOutput {
  int64_t* row;
  int64_t* col;
  int64_t* edge;
};

// The caller's numbers of the edges at some positions.
void write_edge_ids(const int64_t* edge_ids, const int64_t* position, int64_t size, int64_t* out) {
  for (int64_t i = 0; i < size; ++i) {
    if (i + sampling::kPrefetchAhead < size) __builtin_prefetch(edge_ids + position[i + sampling::kPrefetchAhead]);
    out[i] = edge_ids[position[i]];
  }
}

void write_block(const Block& block, const int64_t* edge_ids, const EdgeOutput& out) {
  std::copy_n(block.source.get(), block.size, out.row);
  if (edge_ids != nullptr) {
    write_edge_ids(edge_ids, block.position.get(), block.size, out.edge);
  } else {
    std::copy_n(block.position.get(), block.size, out.edge);
  }
  int64_t* col = out.col;
  for (size_t i = 0; i < block.count.size(); ++i) {
    col = std::fill_n(col, block.count[i], block.first_target + static_cast<int64_t>(i));
  }
}

// Appends row, col and edge of every relation, each of the exact size.
void write_edges(const Sample& sample, const std::vector<Relation>& relations, Tensors& out) {
  std::vector<EdgeOutput> next;
  for (size_t r = 0; r < relations.size(); ++r) {
    int64_t size = 0;
    for (const int64_t n : sample.num_edges[r]) size += n;
    int64_t* data[3];
    for (int64_t*& d : data) {
      out.push_back(new_vector(size));
      d = out.back().mutable_data_ptr<int64_t>();
    }
    next.push_back({data[0], data[1], data[2]});
  }
  std::vector<EdgeOutput> places;
  for (const Block& block : sample.blocks) {
    EdgeOutput& place = next[block.relation];
    places.push_back(place);
    place = {place.row + block.size, place.col + block.size, place.edge + block.size};
  }
  torch::stable::parallel_for(0, static_cast<int64_t>(places.size()), 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      write_block(sample.blocks[i], relations[sample.blocks[i].relation].edge_ids, places[i]);
    }
  });
}

// node (and batch) of each type, then row, col and edge of each relation, then the counts of nodes and of edges per
// hop.
Tensors pack(const Sample& sample, const std::vector<Relation>& relations) {
  Tensors out;
  for (size_t type = 0; type < sample.node.size(); ++type) {
    out.push_back(to_tensor(sample.node[type]));
    if (!sample.batch.empty()) out.push_back(to_tensor(sample.batch[type]));
  }
  write_edges(sample, relations, out);
  for (const auto& counts : sample.num_nodes) out.push_back(to_tensor(counts));
  for (const auto& counts : sample.num_edges) out.push_back(to_tensor(counts));
  return out;
}

Tensors neighbor_sample_cpu(Tensors rowptr, Tensors col, Tensors weight, Tensors alias, Tensors cumulative,
                            Tensors time, std::vector<int64_t> source_type, std::vector<int64_t> target_type,
                            std::vector<int64_t> num_nodes, Tensors seeds, Tensors seed_time,
                            std::vector<double> fanouts, int64_t seed, bool replace, std::string temporal,
                            std::optional<int64_t> window, bool disjoint, Tensor table, Tensors edge_ids) {
  Request request;
  for (size_t r = 0; r < rowptr.size(); ++r) {
    Relation relation = relation_of(rowptr[r], col[r]);
    relation.weight = edge_data<float>(weight, r, col[r]);
    relation.time = edge_data<int64_t>(time, r, col[r]);
    relation.alias = reinterpret_cast<const uint64_t*>(edge_data<int64_t>(alias, r, col[r]));
    relation.cumulative = edge_data<double>(cumulative, r, col[r]);
    relation.edge_ids = edge_data<int64_t>(edge_ids, r, col[r]);
    relation.source_type = source_type[r];
    relation.target_type = target_type[r];
    request.relations.push_back(relation);
  }
  request.num_hops = rowptr.empty() ? 0 : static_cast<int64_t>(fanouts.size() / rowptr.size());
  request.fanouts = std::move(fanouts);
  request.num_nodes = std::move(num_nodes);
  request.seeds = to_vectors(seeds);
  request.seed_time = to_vectors(seed_time);
  request.seed = static_cast<uint64_t>(seed);
  request.window = window.value_or(-1);
  request.replace = replace;
  request.temporal = temporal_of(temporal);
  const Sample sample = disjoint ? sampling::sample_disjoint(request, Parallel{}) : sample_with_table(request, table);
  GOSSAMER_CHECK(sample.valid, "neighbor_sample: graph must have columns in [0, num_nodes)");
  return pack(sample, request.relations);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("neighbor_sample", TORCH_BOX(&neighbor_sample_cpu)); }

}  // namespace gossamer
