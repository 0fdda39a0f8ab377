#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "common/tensor.h"
#include "sampling/sample_disjoint.h"
#include "sampling/sample_shared.h"
#include "sampling/sample_tensors.h"

namespace gossamer {
namespace {

using sampling::Parallel;
using sampling::Relation;
using sampling::Request;
using sampling::Sample;
using sampling::Temporal;
using Tensors = std::vector<Tensor>;

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

Sample sample_shared(const Request& request, Tensor& table) {
  const int64_t num_nodes = std::accumulate(request.num_nodes.begin(), request.num_nodes.end(), int64_t{0});
  return sampling::sample_with_table(table, num_nodes, "neighbor_sample", [&](uint32_t* entries, uint32_t base) {
    return sampling::sample_shared(request, entries, base, Parallel{});
  });
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
  const Sample sample = disjoint ? sampling::sample_disjoint(request, Parallel{}) : sample_shared(request, table);
  GOSSAMER_CHECK(sample.valid, "neighbor_sample: graph must have columns in [0, num_nodes)");
  std::vector<const int64_t*> numbers;
  for (const Relation& relation : request.relations) numbers.push_back(relation.edge_ids);
  return sampling::pack(sample, numbers);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("neighbor_sample", TORCH_BOX(&neighbor_sample_cpu)); }

}  // namespace gossamer
