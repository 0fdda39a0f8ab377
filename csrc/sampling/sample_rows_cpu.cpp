#include "sampling/sample_rows.h"

namespace gossamer {
namespace {

using namespace sampling;

constexpr int64_t kGrain = 256;  // rows

Tensor sample_bounds_cpu(const Tensor& rowptr, const OptionalTensor& time, const Tensor& targets,
                         const OptionalTensor& tree, const OptionalTensor& seed_time, double fanout, bool replace,
                         int64_t window) {
  const auto run = [](const RowsJob& job, int64_t* bounds, int64_t num_targets) {
    torch::stable::parallel_for(0, num_targets, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) bounds[i] = job.bound(i);
    });
  };
  return sample_bounds(rowptr, time, {targets, tree, seed_time}, fanout, replace, window, run);
}

std::tuple<Tensor, Tensor> sample_rows_cpu(const Tensor& rowptr, const Tensor& col, const OptionalTensor& weight,
                                           const OptionalTensor& alias, const OptionalTensor& cumulative,
                                           const OptionalTensor& time, const OptionalTensor& edge_ids,
                                           const Tensor& targets, const OptionalTensor& tree,
                                           const OptionalTensor& seed_time, const Tensor& offsets, int64_t num_edges,
                                           double fanout, int64_t seed, int64_t stream, bool replace,
                                           std::string temporal, int64_t window) {
  Relation relation = relation_of(
      rowptr, col,
      {pointer_to(weight), pointer_to(alias), pointer_to(cumulative), pointer_to(time), pointer_to(edge_ids)},
      "sample_rows");
  relation.fanout = fanout;
  const auto run = [](const RowsJob& job, int64_t num_targets) {
    torch::stable::parallel_for(0, num_targets, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) job.sample(i);
    });
  };
  return sample_rows(relation, {targets, tree, seed_time}, offsets, num_edges, seed, stream, replace, temporal, window,
                     run);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) {
  m.impl("sample_bounds", TORCH_BOX(&sample_bounds_cpu));
  m.impl("sample_rows", TORCH_BOX(&sample_rows_cpu));
}

}  // namespace gossamer
