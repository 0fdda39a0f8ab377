#include "moe/cuda_types.cuh"

namespace gossamer {
namespace {

constexpr int kThreads = 256;

// Same meaning as dispatch.h. One block copies one row at a time, one thread one element.
template <typename scalar_t>
__global__ void dispatch_kernel(const scalar_t* __restrict__ x, const int32_t* __restrict__ order,
                                scalar_t* __restrict__ out, int64_t k, int64_t num_tokens, int64_t num_routes,
                                int64_t dim) {
  for (int64_t p = blockIdx.x; p < num_routes; p += gridDim.x) {
    const int64_t token = order[p] / k;
    if (token < 0 || token >= num_tokens) __trap();
    for (int64_t c = threadIdx.x; c < dim; c += kThreads) out[p * dim + c] = x[token * dim + c];
  }
}

Tensor dispatch_cuda(const Tensor& x, const Tensor& order, const Tensor&, int64_t k) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  GOSSAMER_CHECK_TENSOR(x, 2, "dispatch");
  Tensor out = allocate(x, {order.size(0), x.size(1)});
  if (out.numel() == 0) return out;
  for_scalar_type(x, "dispatch: x must be float32, float64, bfloat16 or float16", [&](auto scalar) {
    using scalar_t = decltype(scalar);
    dispatch_kernel<scalar_t><<<num_blocks(out.size(0), 1), kThreads, 0, current_stream(x)>>>(
        x.const_data_ptr<scalar_t>(), order.const_data_ptr<int32_t>(), out.mutable_data_ptr<scalar_t>(), k, x.size(0),
        out.size(0), x.size(1));
  });
  check_launch("dispatch");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CUDA, m) { m.impl("dispatch", TORCH_BOX(&dispatch_cuda)); }

}  // namespace gossamer
