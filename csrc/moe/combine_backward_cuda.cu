#include "moe/cuda_types.cuh"

#include <tuple>

namespace gossamer {
namespace {

constexpr int kThreads = 256;
constexpr int kWarp = 32;

// Same meaning as combine_backward.h. One warp owns one route at a time; its lanes add their parts of the dot in a
// fixed tree.
template <typename scalar_t, typename acc_t = Accumulator<scalar_t>>
__global__ void combine_backward_kernel(const scalar_t* __restrict__ grad, const scalar_t* __restrict__ y,
                                        const int32_t* __restrict__ inverse, const acc_t* __restrict__ gates,
                                        scalar_t* __restrict__ grad_y, acc_t* __restrict__ grad_gates, int64_t k,
                                        int64_t num_routes, int64_t dim) {
  const int lane = threadIdx.x % kWarp;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * (kThreads / kWarp);
  for (int64_t r = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) / kWarp; r < num_routes; r += stride) {
    const int64_t p = inverse[r];
    const acc_t gate = gates ? gates[r] : acc_t(1);
    acc_t dot = 0;
    for (int64_t c = lane; p >= 0 && c < dim; c += kWarp) {
      const acc_t g = static_cast<acc_t>(grad[r / k * dim + c]);
      dot += g * static_cast<acc_t>(y[p * dim + c]);
      grad_y[p * dim + c] = static_cast<scalar_t>(gate * g);
    }
    for (int offset = kWarp / 2; offset > 0; offset /= 2) dot += __shfl_down_sync(0xffffffff, dot, offset);
    if (lane == 0 && grad_gates) grad_gates[r] = dot;
  }
}

std::tuple<Tensor, Tensor> combine_backward_cuda(const Tensor& grad, const Tensor& y, const Tensor& inverse,
                                                 const OptionalTensor& gates) {
  const torch::stable::accelerator::DeviceGuard guard(y.get_device_index());
  GOSSAMER_CHECK_TENSOR(grad, 2, "combine_backward");
  GOSSAMER_CHECK_TENSOR(y, 2, "combine_backward");
  Tensor grad_y = allocate(y, {y.size(0), y.size(1)});
  Tensor grad_gates = gates.has_value() ? torch::stable::empty_like(*gates) : allocate(y, {0});
  const int64_t num_routes = inverse.numel();
  if (num_routes == 0) return {grad_y, grad_gates};
  for_scalar_type(y, "combine_backward: y must be float32, float64, bfloat16 or float16", [&](auto scalar) {
    using scalar_t = decltype(scalar);
    using acc_t = Accumulator<scalar_t>;
    combine_backward_kernel<scalar_t><<<num_blocks(num_routes, kThreads / kWarp), kThreads, 0, current_stream(y)>>>(
        grad.const_data_ptr<scalar_t>(), y.const_data_ptr<scalar_t>(), inverse.const_data_ptr<int32_t>(),
        data_or_null<acc_t>(gates), grad_y.mutable_data_ptr<scalar_t>(),
        gates.has_value() ? grad_gates.mutable_data_ptr<acc_t>() : nullptr, num_routes / grad.size(0), num_routes,
        y.size(1));
  });
  check_launch("combine_backward");
  return {grad_y, grad_gates};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CUDA, m) { m.impl("combine_backward", TORCH_BOX(&combine_backward_cuda)); }

}  // namespace gossamer
