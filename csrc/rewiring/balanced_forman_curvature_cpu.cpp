#include "common/tensor.h"
#include "rewiring/curvature.h"
#include "rewiring/simple_graph.h"

namespace gossamer {
namespace {

constexpr int64_t kGrainNodes = 256;  // a chunk of rows has a work space of its own

Tensor balanced_forman_curvature_cpu(const Tensor& rowptr, const Tensor& col) {
  GOSSAMER_CHECK_TENSOR(rowptr, 1, "balanced_forman_curvature");
  GOSSAMER_CHECK_TENSOR(col, 1, "balanced_forman_curvature");
  GOSSAMER_CHECK(rowptr.scalar_type() == ScalarType::Long && col.scalar_type() == ScalarType::Int,
                 "balanced_forman_curvature: rowptr must be int64 and col int32");
  const int64_t num_nodes = rowptr.numel() - 1;
  const rewiring::SimpleRows rows{rowptr.const_data_ptr<int64_t>(), col.const_data_ptr<int32_t>()};
  GOSSAMER_CHECK(num_nodes >= 0 && rewiring::is_simple(rows, num_nodes, col.numel()),
                 "balanced_forman_curvature: rows must be those of a simple undirected graph");
  Tensor out = allocate(col, {col.numel()}, ScalarType::Double);
  double* values = out.mutable_data_ptr<double>();
  const int64_t grain = std::max(kGrainNodes, num_nodes / (4 * torch::stable::get_num_threads()));
  torch::stable::parallel_for(0, num_nodes, grain, [&](int64_t begin, int64_t end) {
    rewiring::CurvatureSpace space(num_nodes);
    for (int64_t v = begin; v < end; ++v) {
      const auto i = static_cast<int32_t>(v);
      for (int64_t e = rows.rowptr[v]; e < rows.rowptr[v + 1]; ++e) {
        const int32_t j = rows.col[e];
        if (j < i) continue;  // the row of j has filled it in, or will
        const auto row = rows.neighbors(j);
        const int64_t mirror = std::lower_bound(row.begin(), row.end(), i) - row.begin();
        values[e] = values[rows.rowptr[j] + mirror] = space.curvature(rows, i, j);
      }
    }
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) {
  m.impl("balanced_forman_curvature", TORCH_BOX(&balanced_forman_curvature_cpu));
}

}  // namespace gossamer
