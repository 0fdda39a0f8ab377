#include "sampling/sample_rows.h"

namespace gossamer {
namespace {

using namespace sampling;

constexpr int64_t kGrain = 256;  // rows

Tensor sample_bounds_cpu(const Tensor& rowptr, const Tensor& targets, double fanout, bool replace) {
  const int64_t *offsets = checked_vector(rowptr), *target = checked_vector(targets);
  Tensor bounds = torch::stable::new_empty(targets, {targets.numel()});
  int64_t* bound = bounds.mutable_data_ptr<int64_t>();
  torch::stable::parallel_for(0, targets.numel(), kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      bound[i] = row_bound(fanout, offsets[target[i] + 1] - offsets[target[i]], replace);
    }
  });
  return bounds;
}

std::tuple<Tensor, Tensor> sample_rows_cpu(const Tensor& rowptr, const Tensor& col, const OptionalTensor& weight,
                                           const OptionalTensor& alias, const OptionalTensor& edge_ids,
                                           const Tensor& targets, const Tensor& offsets, int64_t num_edges,
                                           double fanout, int64_t seed, int64_t stream, bool replace) {
  RowOutput out(targets, offsets, num_edges);
  const int64_t *target = checked_vector(targets), *place = checked_vector(offsets);
  int64_t *source = out.source.mutable_data_ptr<int64_t>(), *edge = out.edge.mutable_data_ptr<int64_t>();
  with_request(rowptr, col, weight, alias, edge_ids, fanout, seed, stream, replace, [&](const auto& request) {
    torch::stable::parallel_for(0, targets.numel(), kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        sample_row_into(request, target[i], place[i + 1] - place[i], source + place[i], edge + place[i]);
      }
    });
  });
  return {out.source, out.edge};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) {
  m.impl("sample_bounds", TORCH_BOX(&sample_bounds_cpu));
  m.impl("sample_rows", TORCH_BOX(&sample_rows_cpu));
}

}  // namespace gossamer
