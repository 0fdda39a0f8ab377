#include "rewiring/fosr.h"

#include "common/tensor.h"

namespace gossamer {
namespace {

Tensor fosr_cpu(const Tensor& rowptr, const Tensor& col, int64_t num_edges, int64_t num_power_iterations,
                int64_t seed) {
  GOSSAMER_CHECK_TENSOR(rowptr, 1, "fosr");
  GOSSAMER_CHECK_TENSOR(col, 1, "fosr");
  GOSSAMER_CHECK(rowptr.scalar_type() == ScalarType::Long && col.scalar_type() == ScalarType::Int,
                 "fosr: rowptr must be int64 and col int32");
  const int64_t num_nodes = rowptr.numel() - 1;
  const rewiring::SimpleRows rows{rowptr.const_data_ptr<int64_t>(), col.const_data_ptr<int32_t>()};
  GOSSAMER_CHECK(num_nodes >= 0 && rewiring::is_simple(rows, num_nodes, col.numel()),
                 "fosr: rows must be those of a simple undirected graph");
  rewiring::SpectralRewiring rewiring(rows, num_nodes, static_cast<uint64_t>(seed));
  for (int64_t i = 0; i < num_power_iterations; ++i) rewiring.iterate();
  std::vector<std::pair<int32_t, int32_t>> added;
  for (int64_t i = 0; i < num_edges; ++i) {
    const auto edge = rewiring.add_edge();
    if (!edge) break;
    added.push_back(*edge);
    rewiring.iterate();
  }
  const auto count = static_cast<int64_t>(added.size());
  Tensor out = allocate(rowptr, {2, count});
  int64_t* ids = out.mutable_data_ptr<int64_t>();
  for (int64_t e = 0; e < count; ++e) {
    ids[e] = added[e].first;
    ids[count + e] = added[e].second;
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("fosr", TORCH_BOX(&fosr_cpu)); }

}  // namespace gossamer
