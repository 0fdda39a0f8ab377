#include "common/cuda.cuh"
#include "sampling/sample_rows.h"

namespace gossamer {
namespace {

using namespace sampling;

constexpr int kThreads = 128;

// One thread finds the room that the row of one target needs.
__global__ void sample_bounds_kernel(const int64_t* __restrict__ rowptr, const int64_t* __restrict__ targets,
                                     int64_t num_targets, double fanout, bool replace, int64_t* __restrict__ bounds) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < num_targets; i += step) {
    bounds[i] = row_bound(fanout, rowptr[targets[i] + 1] - rowptr[targets[i]], replace);
  }
}

// One thread samples the row of one target: rows are short where there is a fan-out. The graph may lie in pinned host
// memory.
template <typename index_t>
__global__ void sample_rows_kernel(RowRequest<index_t> request, const int64_t* __restrict__ targets,
                                   const int64_t* __restrict__ offsets, int64_t num_targets, int64_t* source,
                                   int64_t* edge) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < num_targets; i += step) {
    sample_row_into(request, targets[i], offsets[i + 1] - offsets[i], source + offsets[i], edge + offsets[i]);
  }
}

Tensor sample_bounds_cuda(const Tensor& rowptr, const Tensor& targets, double fanout, bool replace) {
  const torch::stable::accelerator::DeviceGuard guard(targets.get_device_index());
  const int64_t *begin = checked_vector(rowptr), *target = checked_vector(targets);
  Tensor bounds = torch::stable::new_empty(targets, {targets.numel()});
  if (targets.numel() == 0) return bounds;
  sample_bounds_kernel<<<num_blocks(targets.numel(), kThreads), kThreads, 0, current_stream(targets)>>>(
      begin, target, targets.numel(), fanout, replace, bounds.mutable_data_ptr<int64_t>());
  check_launch("sample_bounds");
  return bounds;
}

std::tuple<Tensor, Tensor> sample_rows_cuda(const Tensor& rowptr, const Tensor& col, const OptionalTensor& weight,
                                            const OptionalTensor& alias, const OptionalTensor& edge_ids,
                                            const Tensor& targets, const Tensor& offsets, int64_t num_edges,
                                            double fanout, int64_t seed, int64_t stream, bool replace) {
  const torch::stable::accelerator::DeviceGuard guard(targets.get_device_index());
  RowOutput out(targets, offsets, num_edges);
  if (num_edges == 0) return {out.source, out.edge};
  with_request(rowptr, col, weight, alias, edge_ids, fanout, seed, stream, replace, [&](const auto& request) {
    sample_rows_kernel<<<num_blocks(targets.numel(), kThreads), kThreads, 0, current_stream(targets)>>>(
        request, checked_vector(targets), checked_vector(offsets), targets.numel(),
        out.source.mutable_data_ptr<int64_t>(), out.edge.mutable_data_ptr<int64_t>());
    check_launch("sample_rows");
  });
  return {out.source, out.edge};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CUDA, m) {
  m.impl("sample_bounds", TORCH_BOX(&sample_bounds_cuda));
  m.impl("sample_rows", TORCH_BOX(&sample_rows_cuda));
}

}  // namespace gossamer
