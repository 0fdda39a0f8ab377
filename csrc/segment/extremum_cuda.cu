#include <tuple>

#include "segment/extremum_args.h"
#include "segment/rows.cuh"

namespace gossamer {
namespace {

// One warp owns one row; its lanes own every 32nd feature.
template <typename scalar_t, typename index_t>
__global__ void extremum_kernel(const ExtremumArgs<scalar_t, index_t> args) {
  using acc_t = Accumulator<scalar_t>;
  for (int64_t row = first_row(); row < args.num_rows; row += row_stride()) {
    const int64_t first = args.rowptr[row], end = args.rowptr[row + 1];
    for (int64_t f = lane_id(); f < args.num_features; f += kLanes) {
      acc_t best = 0;
      int32_t arg = -1;
      for (int64_t e = first; e < end; ++e) {
        const acc_t scale = args.weight ? args.weight[e] : acc_t(1);
        const acc_t value = scale * static_cast<acc_t>(args.x[args.col[e] * args.num_features + f]);
        const bool worse = args.minimum ? value >= best : value <= best;
        if (e == first || (!worse && best == best)) {  // a NaN wins, and stays
          best = value;
          arg = static_cast<int32_t>(e - first);
        }
      }
      args.out[row * args.num_features + f] = static_cast<scalar_t>(best);
      args.arg[row * args.num_features + f] = arg;
    }
  }
}

// One warp owns one source node and gathers from the rows of its edges; its lanes own every 32nd feature.
template <typename scalar_t, typename index_t>
__global__ void extremum_backward_kernel(const ExtremumBackwardArgs<scalar_t, index_t> args) {
  using acc_t = Accumulator<scalar_t>;
  for (int64_t node = first_row(); node < args.num_sources; node += row_stride()) {
    for (int64_t f = lane_id(); f < args.num_features; f += kLanes) {
      acc_t sum = 0;
      for (int64_t t = args.rowptr_t[node]; t < args.rowptr_t[node + 1]; ++t) {
        const int64_t row = args.col_t[t], e = args.edge_ids_t[t], i = row * args.num_features + f;
        if (args.arg[i] != e - args.rowptr[row]) continue;
        sum += (args.weight ? args.weight[e] : acc_t(1)) * static_cast<acc_t>(args.grad[i]);
      }
      args.grad_x[node * args.num_features + f] = static_cast<scalar_t>(sum);
    }
  }
}

// One warp owns one row and goes through its edges; its lanes share the features that an edge may have won.
template <typename scalar_t, typename index_t>
__global__ void extremum_backward_weight_kernel(const ExtremumBackwardWeightArgs<scalar_t, index_t> args) {
  using acc_t = Accumulator<scalar_t>;
  for (int64_t row = first_row(); row < args.num_rows; row += row_stride()) {
    const int64_t first = args.rowptr[row];
    for (int64_t e = first; e < args.rowptr[row + 1]; ++e) {
      const scalar_t* x = args.x + args.col[e] * args.num_features;
      acc_t sum = 0;
      for (int64_t f = lane_id(); f < args.num_features; f += kLanes) {
        const int64_t i = row * args.num_features + f;
        if (args.arg[i] == e - first) sum += static_cast<acc_t>(args.grad[i]) * static_cast<acc_t>(x[f]);
      }
      sum = warp_sum(sum);
      if (lane_id() == 0) args.grad_weight[e] = sum;
    }
  }
}

std::tuple<Tensor, Tensor> extremum_cuda(const Tensor& x, const Tensor& rowptr, const Tensor& col,
                                         const OptionalTensor& weight, bool minimum, const OptionalTensor&,
                                         const OptionalTensor&, const OptionalTensor&) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  check_extremum(x, rowptr, col, weight);
  Tensor out = allocate(x, {rowptr.size(0) - 1, x.size(1)});
  Tensor arg = allocate(x, {rowptr.size(0) - 1, x.size(1)}, ScalarType::Int);
  if (out.numel() == 0) return {out, arg};
  dispatch_rows(x.scalar_type(), col.scalar_type(), "extremum", [&](auto scalar, auto index) {
    const auto args = extremum_args<decltype(scalar), decltype(index)>(x, rowptr, col, weight, minimum, out, arg);
    extremum_kernel<<<num_blocks(args.num_rows, kWarpsPerBlock), kThreads, 0, current_stream(x)>>>(args);
    check_launch("extremum");
  });
  return {out, arg};
}

Tensor extremum_backward_cuda(const Tensor& grad, const Tensor& arg, const Tensor& rowptr, const OptionalTensor& weight,
                              const Tensor& rowptr_t, const Tensor& col_t, const Tensor& edge_ids_t) {
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  check_extremum_backward(grad, arg, rowptr, weight, rowptr_t, col_t, edge_ids_t);
  Tensor grad_x = allocate(grad, {rowptr_t.size(0) - 1, grad.size(1)});
  if (grad_x.numel() == 0) return grad_x;
  dispatch_rows(grad.scalar_type(), col_t.scalar_type(), "extremum_backward", [&](auto scalar, auto index) {
    const auto args = extremum_backward_args<decltype(scalar), decltype(index)>(grad, arg, rowptr, weight, rowptr_t,
                                                                                col_t, edge_ids_t, grad_x);
    extremum_backward_kernel<<<num_blocks(args.num_sources, kWarpsPerBlock), kThreads, 0, current_stream(grad)>>>(args);
    check_launch("extremum_backward");
  });
  return grad_x;
}

Tensor extremum_backward_weight_cuda(const Tensor& grad, const Tensor& arg, const Tensor& x, const Tensor& rowptr,
                                     const Tensor& col) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  Tensor grad_weight = extremum_backward_weight_output(grad, arg, x, rowptr, col);
  if (grad_weight.numel() == 0 || grad.numel() == 0) return grad_weight;
  dispatch_rows(x.scalar_type(), col.scalar_type(), "extremum_backward_weight", [&](auto scalar, auto index) {
    const auto args =
        extremum_backward_weight_args<decltype(scalar), decltype(index)>(grad, arg, x, rowptr, col, grad_weight);
    const unsigned blocks = num_blocks(args.num_rows, kWarpsPerBlock);
    extremum_backward_weight_kernel<<<blocks, kThreads, 0, current_stream(x)>>>(args);
    check_launch("extremum_backward_weight");
  });
  return grad_weight;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CUDA, m) {
  m.impl("extremum", TORCH_BOX(&extremum_cuda));
  m.impl("extremum_backward", TORCH_BOX(&extremum_backward_cuda));
  m.impl("extremum_backward_weight", TORCH_BOX(&extremum_backward_weight_cuda));
}

}  // namespace gossamer
