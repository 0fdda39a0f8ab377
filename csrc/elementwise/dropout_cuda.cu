#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/cuda.cuh"
#include "elementwise/dropout_key.h"
#include "elementwise/dropout_types.h"

namespace gossamer {
namespace {

constexpr int kThreads = 256;

template <typename scalar_t>
using Accumulator = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

// One thread owns the (up to four) features that one random number decides.
template <bool kRelu, typename scalar_t>
__global__ void dropout_kernel(const scalar_t* __restrict__ x, scalar_t* __restrict__ out, DropoutKey key,
                               int64_t num_rows, int64_t num_features) {
  using acc_t = Accumulator<scalar_t>;
  const int64_t draws_per_row = (num_features + 3) / 4;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < num_rows * draws_per_row;
       i += stride) {
    const int64_t row = i / draws_per_row;
    const int64_t number = i % draws_per_row;
    const uint64_t draw = key.random(row).draw(static_cast<uint64_t>(number));
    for (int64_t f = 4 * number; f < min(4 * number + 4, num_features); ++f) {
      acc_t value = static_cast<acc_t>(x[row * num_features + f]);
      if (kRelu && value < 0) value = 0;
      out[row * num_features + f] = static_cast<scalar_t>(key.keeps(draw, f) ? value * acc_t(key.scale) : acc_t(0));
    }
  }
}

// One thread owns one element.
template <typename scalar_t>
__global__ void relu_dropout_backward_kernel(const scalar_t* __restrict__ grad, const scalar_t* __restrict__ out,
                                             scalar_t* __restrict__ grad_x, double scale, int64_t num_elements) {
  using acc_t = Accumulator<scalar_t>;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < num_elements; i += stride) {
    const acc_t value = static_cast<acc_t>(grad[i]) * acc_t(scale);
    grad_x[i] = static_cast<scalar_t>(static_cast<acc_t>(out[i]) <= 0 ? acc_t(0) : value);
  }
}

template <bool kRelu>
Tensor dropout(const Tensor& x, double p, int64_t seed, int64_t step, const OptionalTensor& node_ids,
               int64_t first_row) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  GOSSAMER_CHECK_TENSOR(x, 2, "dropout");
  GOSSAMER_CHECK(!node_ids || (node_ids->is_contiguous() && node_ids->numel() == x.size(0)),
                 "dropout: node_ids must have one entry per row");
  Tensor out = torch::stable::empty_like(x);
  if (out.numel() == 0) return out;
  const DropoutKey key{static_cast<uint64_t>(seed),
                       static_cast<uint64_t>(step),
                       data_or_null<int64_t>(node_ids),
                       first_row,
                       dropout_threshold(p),
                       dropout_scale(p)};
  dispatch_type(x, [&](auto scalar) {
    using scalar_t = decltype(scalar);
    dropout_kernel<kRelu, scalar_t><<<num_blocks(x.numel() / 4 + 1, kThreads), kThreads, 0, current_stream(x)>>>(
        x.const_data_ptr<scalar_t>(), out.mutable_data_ptr<scalar_t>(), key, x.size(0), x.size(1));
  });
  check_launch("dropout");
  return out;
}

Tensor relu_dropout_backward_cuda(const Tensor& grad, const Tensor& out, double p) {
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  GOSSAMER_CHECK_TENSOR(grad, 2, "relu_dropout_backward");
  GOSSAMER_CHECK_TENSOR(out, 2, "relu_dropout_backward");
  GOSSAMER_CHECK(grad.scalar_type() == out.scalar_type() && grad.numel() == out.numel(),
                 "relu_dropout_backward: grad and out must have the same shape and type");
  Tensor grad_x = torch::stable::empty_like(grad);
  if (grad.numel() == 0) return grad_x;
  dispatch_type(grad, [&](auto scalar) {
    using scalar_t = decltype(scalar);
    relu_dropout_backward_kernel<<<num_blocks(grad.numel(), kThreads), kThreads, 0, current_stream(grad)>>>(
        grad.const_data_ptr<scalar_t>(), out.const_data_ptr<scalar_t>(), grad_x.mutable_data_ptr<scalar_t>(),
        dropout_scale(p), grad.numel());
  });
  check_launch("relu_dropout_backward");
  return grad_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CUDA, m) {
  m.impl("node_dropout", TORCH_BOX(&dropout<false>));
  m.impl("relu_dropout", TORCH_BOX(&dropout<true>));
  m.impl("relu_dropout_backward", TORCH_BOX(&relu_dropout_backward_cuda));
}

}  // namespace gossamer
