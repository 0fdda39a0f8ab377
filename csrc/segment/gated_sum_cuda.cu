#include "segment/gated_sum_args.h"
#include "segment/rows.cuh"

namespace gossamer {
namespace {

template <typename acc_t>
__device__ acc_t sigmoid(acc_t x) {
  return 1 / (1 + exp(-x));
}

// One warp owns one row; each of its lanes goes through the edges for its own features.
template <typename scalar_t, typename index_t>
__global__ void gated_sum_kernel(const GatedSumArgs<scalar_t, index_t> args) {
  using acc_t = Accumulator<scalar_t>;
  for (int64_t row = first_row(); row < args.num_rows; row += row_stride()) {
    for (int64_t f = lane_id(); f < args.num_features; f += kLanes) {
      const int64_t at = row * args.num_features + f;
      const acc_t query = args.query[at];
      acc_t sum = 0, norm = args.eps;
      for (int64_t e = args.rowptr[row]; e < args.rowptr[row + 1]; ++e) {
        const int64_t source = args.col[e] * args.num_features + f;
        const acc_t gate = sigmoid(query + static_cast<acc_t>(args.key[source]));
        sum += gate * static_cast<acc_t>(args.value[source]);
        norm += gate;
      }
      args.out[at] = sum / norm;
      args.norm[at] = norm;
    }
  }
}

// As gated_sum_rows in gated_sum.h.
template <typename scalar_t, typename index_t>
__global__ void rows_kernel(const GatedSumArgs<scalar_t, index_t> args) {
  using acc_t = Accumulator<scalar_t>;
  for (int64_t row = first_row(); row < args.num_rows; row += row_stride()) {
    for (int64_t f = lane_id(); f < args.num_features; f += kLanes) {
      const int64_t at = row * args.num_features + f;
      const acc_t query = args.query[at], out = args.out[at], share = static_cast<acc_t>(args.grad[at]) / args.norm[at];
      acc_t sum = 0;
      for (int64_t e = args.rowptr[row]; e < args.rowptr[row + 1]; ++e) {
        const int64_t source = args.col[e] * args.num_features + f;
        const acc_t gate = sigmoid(query + static_cast<acc_t>(args.key[source]));
        sum += gate * (1 - gate) * (static_cast<acc_t>(args.value[source]) - out);
      }
      args.share[at] = share;
      args.grad_query[at] = share * sum;
    }
  }
}

// As gated_sum_columns in gated_sum.h.
template <typename scalar_t, typename index_t>
__global__ void columns_kernel(const GatedSumArgs<scalar_t, index_t> args) {
  using acc_t = Accumulator<scalar_t>;
  for (int64_t row = first_row(); row < args.num_rows; row += row_stride()) {
    for (int64_t f = lane_id(); f < args.num_features; f += kLanes) {
      const int64_t at = row * args.num_features + f;
      const acc_t key = args.key[at], value = args.value[at];
      acc_t grad_key = 0, grad_value = 0;
      for (int64_t e = args.rowptr[row]; e < args.rowptr[row + 1]; ++e) {
        const int64_t target = args.col[e] * args.num_features + f;
        const acc_t gate = sigmoid(static_cast<acc_t>(args.query[target]) + key);
        const acc_t part = gate * args.share[target];
        grad_value += part;
        grad_key += part * (1 - gate) * (value - static_cast<acc_t>(args.out[target]));
      }
      args.grad_key[at] = grad_key;
      args.grad_value[at] = grad_value;
    }
  }
}

std::tuple<Tensor, Tensor> gated_sum_cuda(const Tensor& query, const Tensor& key, const Tensor& value,
                                          const Tensor& rowptr, const Tensor& col, double eps, const OptionalTensor&,
                                          const OptionalTensor&) {
  const torch::stable::accelerator::DeviceGuard guard(query.get_device_index());
  check_gated_sum(query, key, value, rowptr, col);
  Tensor out = torch::stable::empty_like(query), norm = like_in_sum_type(query);
  if (query.numel() == 0) return {out, norm};
  dispatch_rows(query.scalar_type(), col.scalar_type(), "gated_sum", [&](auto scalar, auto index) {
    using scalar_t = decltype(scalar);
    auto args = gated_sum_args<scalar_t, decltype(index)>(query, key, value, rowptr, col, eps);
    args.out = out.mutable_data_ptr<scalar_t>();
    args.norm = norm.mutable_data_ptr<Accumulator<scalar_t>>();
    gated_sum_kernel<<<num_blocks(args.num_rows, kWarpsPerBlock), kThreads, 0, current_stream(query)>>>(args);
    check_launch("gated_sum");
  });
  return {out, norm};
}

std::tuple<Tensor, Tensor, Tensor> gated_sum_backward_cuda(const Tensor& grad, const Tensor& out, const Tensor& norm,
                                                           const Tensor& query, const Tensor& key, const Tensor& value,
                                                           const Tensor& rowptr, const Tensor& col,
                                                           const Tensor& rowptr_t, const Tensor& col_t) {
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const cudaStream_t stream = current_stream(grad);
  const auto rows = [stream](const auto& args) {
    rows_kernel<<<num_blocks(args.num_rows, kWarpsPerBlock), kThreads, 0, stream>>>(args);
    check_launch("gated_sum_backward");
  };
  const auto columns = [stream](const auto& args) {
    columns_kernel<<<num_blocks(args.num_rows, kWarpsPerBlock), kThreads, 0, stream>>>(args);
    check_launch("gated_sum_backward");
  };
  return gated_sum_backward(grad, out, norm, query, key, value, rowptr, col, rowptr_t, col_t, rows, columns);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CUDA, m) {
  m.impl("gated_sum", TORCH_BOX(&gated_sum_cuda));
  m.impl("gated_sum_backward", TORCH_BOX(&gated_sum_backward_cuda));
}

}  // namespace gossamer
