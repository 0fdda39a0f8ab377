#include "segment/aggregate_args.h"
#include "segment/rows.cuh"

namespace gossamer {
namespace {

constexpr int kSums = 4;  // features of one lane per pass over the edges

// One warp owns one row. Its lanes own every 32nd feature, so loads of a source row are coalesced; they fetch 32 edges
// at a time, one each, and pass them round.
template <typename scalar_t, typename index_t>
__global__ void aggregate_kernel(const AggregateArgs<scalar_t, index_t> args) {
  using acc_t = Accumulator<scalar_t>;
  const int lane = lane_id();
  const int64_t num_features = args.num_features;
  for (int64_t row = first_row(); row < args.num_rows; row += row_stride()) {
    const int64_t begin = args.rowptr[row], end = args.rowptr[row + 1], self = row + args.row_offset;
    const acc_t factor = (1 - args.alpha) * (args.row_scale ? args.row_scale[row] : acc_t(1));
    for (int64_t first = lane; first - lane < num_features; first += kSums * kLanes) {
      acc_t sum[kSums] = {};
      const auto add = [&](int64_t source, acc_t scale) {
        for (int s = 0; s < kSums; ++s) {
          const int64_t f = first + s * kLanes;
          if (f < num_features) sum[s] += scale * static_cast<acc_t>(args.x[source * num_features + f]);
        }
      };
      for (int64_t e = begin + lane; e - lane < end; e += kLanes) {
        const int64_t own_source = e < end ? static_cast<int64_t>(args.col[e]) : 0;
        acc_t own_scale = e < end && args.weight ? args.weight[args.edge_ids ? args.edge_ids[e] : e] : acc_t(1);
        if (args.col_scale && e < end) own_scale *= args.col_scale[own_source];
        const int count = static_cast<int>(min(static_cast<int64_t>(kLanes), end - (e - lane)));
        for (int k = 0; k < count; ++k) {
          add(__shfl_sync(kAllLanes, own_source, k), __shfl_sync(kAllLanes, own_scale, k));
        }
      }
      if (args.self_loops) add(self, args.col_scale ? args.col_scale[self] : acc_t(1));
      for (int s = 0; s < kSums; ++s) {
        const int64_t f = first + s * kLanes, i = row * num_features + f;
        if (f >= num_features) continue;
        const acc_t rest = args.residual ? args.alpha * static_cast<acc_t>(args.residual[i]) : acc_t(0);
        args.out[i] = static_cast<scalar_t>(factor * sum[s] + rest);
      }
    }
  }
}

Tensor aggregate_cuda(const Tensor& x, const Tensor& rowptr, const Tensor& col, const OptionalTensor& weight,
                      const OptionalTensor& edge_ids, const OptionalTensor& row_scale, const OptionalTensor& col_scale,
                      bool self_loops, int64_t row_offset, const OptionalTensor& residual, double alpha,
                      const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  check_aggregate(x, rowptr, col, weight, edge_ids, row_scale, col_scale, self_loops, row_offset, residual);
  Tensor out = allocate(x, {rowptr.size(0) - 1, x.size(1)});
  if (out.numel() == 0) return out;
  dispatch_rows(x.scalar_type(), col.scalar_type(), "aggregate", [&](auto scalar, auto index) {
    const auto args = aggregate_args<decltype(scalar), decltype(index)>(
        x, rowptr, col, weight, edge_ids, row_scale, col_scale, self_loops, row_offset, residual, alpha, out);
    aggregate_kernel<<<num_blocks(args.num_rows, kWarpsPerBlock), kThreads, 0, current_stream(x)>>>(args);
    check_launch("aggregate");
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CUDA, m) { m.impl("aggregate", TORCH_BOX(&aggregate_cuda)); }

}  // namespace gossamer
