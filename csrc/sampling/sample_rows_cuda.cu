#include "common/cuda.cuh"
#include "sampling/sample_rows.h"

namespace gossamer {
namespace {

using namespace sampling;

constexpr int kThreads = 128;

// One thread finds the room that the row of one target needs.
__global__ void sample_bounds_kernel(RowsJob job, int64_t num_targets, int64_t* __restrict__ bounds) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < num_targets; i += step) {
    bounds[i] = job.bound(i);
  }
}

// One thread samples the row of one target: rows are short where there is a fan-out. The graph may lie in pinned host
// memory.
__global__ void sample_rows_kernel(RowsJob job, int64_t num_targets) {
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < num_targets; i += step) {
    job.sample(i);
  }
}

Tensor sample_bounds_cuda(const Tensor& rowptr, const OptionalTensor& time, const Tensor& targets,
                          const OptionalTensor& tree, const OptionalTensor& seed_time, double fanout, bool replace,
                          int64_t window) {
  const torch::stable::accelerator::DeviceGuard guard(targets.get_device_index());
  const auto run = [&](const RowsJob& job, int64_t* bounds, int64_t num_targets) {
    sample_bounds_kernel<<<num_blocks(num_targets, kThreads), kThreads, 0, current_stream(targets)>>>(job, num_targets,
                                                                                                      bounds);
    check_launch("sample_bounds");
  };
  return sample_bounds(rowptr, time, {targets, tree, seed_time}, fanout, replace, window, run);
}

std::tuple<Tensor, Tensor> sample_rows_cuda(const Tensor& rowptr, const Tensor& col, const OptionalTensor& weight,
                                            const OptionalTensor& alias, const OptionalTensor& cumulative,
                                            const OptionalTensor& time, const OptionalTensor& edge_ids,
                                            const Tensor& targets, const OptionalTensor& tree,
                                            const OptionalTensor& seed_time, const Tensor& offsets, int64_t num_edges,
                                            double fanout, int64_t seed, int64_t stream, bool replace,
                                            std::string temporal, int64_t window) {
  const torch::stable::accelerator::DeviceGuard guard(targets.get_device_index());
  Relation relation = relation_of(
      rowptr, col,
      {pointer_to(weight), pointer_to(alias), pointer_to(cumulative), pointer_to(time), pointer_to(edge_ids)},
      "sample_rows");
  relation.fanout = fanout;
  const auto run = [&](const RowsJob& job, int64_t num_targets) {
    sample_rows_kernel<<<num_blocks(num_targets, kThreads), kThreads, 0, current_stream(targets)>>>(job, num_targets);
    check_launch("sample_rows");
  };
  return sample_rows(relation, {targets, tree, seed_time}, offsets, num_edges, seed, stream, replace, temporal, window,
                     run);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CUDA, m) {
  m.impl("sample_bounds", TORCH_BOX(&sample_bounds_cuda));
  m.impl("sample_rows", TORCH_BOX(&sample_rows_cuda));
}

}  // namespace gossamer
