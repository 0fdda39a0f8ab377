#include "sampling/walk_neighbors.h"

#include "common/tensor.h"
#include "sampling/seed_scores.h"

namespace gossamer {
namespace {

using namespace sampling;

Scores walk_neighbors_cpu(const Tensor& rowptr, const Tensor& col, const Tensor& seeds, int64_t top_k,
                          int64_t num_walks, int64_t num_steps, double alpha, int64_t seed,
                          std::vector<int64_t> num_nodes) {
  const std::vector<int64_t> type_end = checked_types("walk_neighbors", rowptr, col, seeds, num_nodes);
  return score_seeds(col, seeds, top_k, type_end, [&](const auto* columns) {
    using index_t = std::remove_cvref_t<decltype(*columns)>;
    RandomWalks<index_t> walks(rowptr.const_data_ptr<int64_t>(), columns, type_end, num_walks, num_steps, alpha);
    return [walks = std::move(walks), seed](int64_t node, const TopOutput& out) mutable {
      walks.run(static_cast<uint64_t>(seed), node, out);
    };
  });
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("walk_neighbors", TORCH_BOX(&walk_neighbors_cpu)); }

}  // namespace gossamer
