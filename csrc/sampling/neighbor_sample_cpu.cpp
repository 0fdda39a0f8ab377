#include <numeric>
#include <string>
#include <utility>
#include <vector>

#include "common/tensor.h"
#include "sampling/relation_tensors.h"
#include "sampling/sample_disjoint.h"
#include "sampling/sample_shared.h"
#include "sampling/sample_tensors.h"

namespace gossamer {
namespace {

using sampling::Parallel;
using sampling::Relation;
using sampling::Request;
using sampling::Sample;
using Tensors = std::vector<Tensor>;

std::vector<std::vector<int64_t>> to_vectors(const Tensors& tensors) {
  std::vector<std::vector<int64_t>> values;
  for (const Tensor& tensor : tensors) {
    const int64_t* data = sampling::checked_vector(tensor, "neighbor_sample");
    values.emplace_back(data, data + tensor.numel());
  }
  return values;
}

// Tensor r of a list with one per relation, or null where the list is empty.
const Tensor* at(const Tensors& list, size_t r) { return list.empty() ? nullptr : &list[r]; }

Sample sample_shared(const Request& request, Tensor& table) {
  const int64_t num_nodes = std::accumulate(request.num_nodes.begin(), request.num_nodes.end(), int64_t{0});
  return sampling::sample_with_table(table, num_nodes, "neighbor_sample", [&](uint32_t* entries, uint32_t base) {
    return sampling::sample_shared(request, entries, base, Parallel{}, [&] { return sampling::PlainRows(request); });
  });
}

Tensors neighbor_sample_cpu(Tensors rowptr, Tensors col, Tensors weight, Tensors alias, Tensors cumulative,
                            Tensors time, std::vector<int64_t> source_type, std::vector<int64_t> target_type,
                            std::vector<int64_t> num_nodes, Tensors seeds, Tensors seed_time,
                            std::vector<double> fanouts, int64_t seed, bool replace, std::string temporal,
                            std::optional<int64_t> window, bool disjoint, Tensor table, Tensors edge_ids) {
  Request request;
  for (size_t r = 0; r < rowptr.size(); ++r) {
    const sampling::EdgeTensors edges{at(weight, r), at(alias, r), at(cumulative, r), at(time, r), at(edge_ids, r)};
    Relation relation = sampling::relation_of(rowptr[r], col[r], edges, "neighbor_sample");
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
  request.temporal = sampling::temporal_of(temporal);
  const Sample sample = disjoint ? sampling::sample_disjoint(request, Parallel{}) : sample_shared(request, table);
  GOSSAMER_CHECK(sample.valid, "neighbor_sample: graph must have columns in [0, num_nodes)");
  return sampling::pack(sample);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("neighbor_sample", TORCH_BOX(&neighbor_sample_cpu)); }

}  // namespace gossamer
