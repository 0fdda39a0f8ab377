#include "sampling/ppr_neighbors.h"

#include "common/tensor.h"
#include "sampling/seed_scores.h"

namespace gossamer {
namespace {

using namespace sampling;

Scores ppr_neighbors_cpu(const Tensor& rowptr, const Tensor& col, const Tensor& seeds, int64_t top_k, double alpha,
                         double eps, bool is_symmetric, std::vector<int64_t> num_nodes) {
  const std::vector<int64_t> type_end = checked_types("ppr_neighbors", rowptr, col, seeds, num_nodes);
  return score_seeds(col, seeds, top_k, type_end, [&](const auto* columns) {
    using index_t = std::remove_cvref_t<decltype(*columns)>;
    ForwardPush<index_t> forward_push(rowptr.const_data_ptr<int64_t>(), columns, type_end, alpha, eps, is_symmetric);
    return [forward_push = std::move(forward_push)](int64_t seed, const TopOutput& out) mutable {
      forward_push.run(seed, out);
    };
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("ppr_neighbors", TORCH_BOX(&ppr_neighbors_cpu)); }

}  // namespace gossamer
