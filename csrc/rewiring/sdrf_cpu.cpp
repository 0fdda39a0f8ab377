#include "rewiring/sdrf.h"

#include <tuple>

#include "common/tensor.h"

namespace gossamer {
namespace {

using rewiring::ChangingGraph;
using rewiring::SimpleRows;

Tensor edges_tensor(const Tensor& like, const std::vector<rewiring::Edge>& edges) {
  const auto count = static_cast<int64_t>(edges.size());
  Tensor out = allocate(like, {2, count}, ScalarType::Long);
  int64_t* ids = out.mutable_data_ptr<int64_t>();
  for (int64_t e = 0; e < count; ++e) {
    ids[e] = edges[e].first;
    ids[count + e] = edges[e].second;
  }
  return out;
}

// Edges i < j of the graph that stand in none of the rows, and those of the rows that the graph has lost.
std::tuple<Tensor, Tensor> changes(const Tensor& like, const SimpleRows& before, const ChangingGraph& after) {
  std::vector<rewiring::Edge> added, removed;
  for (int32_t i = 0; i < after.num_nodes(); ++i) {
    const auto row = before.neighbors(i);
    for (const int32_t j : after.neighbors(i)) {
      if (i < j && !std::binary_search(row.begin(), row.end(), j)) added.emplace_back(i, j);
    }
    for (const int32_t j : row) {
      if (i < j && !after.has(i, j)) removed.emplace_back(i, j);
    }
  }
  return {edges_tensor(like, added), edges_tensor(like, removed)};
}

std::tuple<Tensor, Tensor> sdrf_cpu(const Tensor& rowptr, const Tensor& col, const Tensor& curvature,
                                    int64_t num_iterations, double tau, std::optional<double> removal_bound,
                                    int64_t seed) {
  GOSSAMER_CHECK_TENSOR(rowptr, 1, "sdrf");
  GOSSAMER_CHECK_TENSOR(col, 1, "sdrf");
  GOSSAMER_CHECK(rowptr.scalar_type() == ScalarType::Long && col.scalar_type() == ScalarType::Int,
                 "sdrf: rowptr must be int64 and col int32");
  GOSSAMER_CHECK(
      curvature.is_contiguous() && curvature.scalar_type() == ScalarType::Double && curvature.numel() == col.numel(),
      "sdrf: curvature must be float64, one value per entry of col");
  const int64_t num_nodes = rowptr.numel() - 1;
  const SimpleRows rows{rowptr.const_data_ptr<int64_t>(), col.const_data_ptr<int32_t>()};
  GOSSAMER_CHECK(num_nodes >= 0 && rewiring::is_simple(rows, num_nodes, col.numel()),
                 "sdrf: rows must be those of a simple undirected graph");
  rewiring::RicciFlow flow(ChangingGraph(rows, curvature.const_data_ptr<double>(), num_nodes), tau,
                           static_cast<uint64_t>(seed));
  for (int64_t iteration = 0; iteration < num_iterations && flow.step(iteration, removal_bound);) ++iteration;
  return changes(rowptr, rows, flow.graph());
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("sdrf", TORCH_BOX(&sdrf_cpu)); }

}  // namespace gossamer
