#include "moe/cuda_types.cuh"

namespace gossamer {
namespace {

constexpr int kThreads = 256;

// Same meaning as combine.h. One block sums one token at a time, one thread one column, routes in order of j.
template <typename scalar_t, typename acc_t = Accumulator<scalar_t>>
__global__ void combine_kernel(const scalar_t* __restrict__ y, const int32_t* __restrict__ inverse,
                               const acc_t* __restrict__ gates, scalar_t* __restrict__ out, int64_t k,
                               int64_t num_tokens, int64_t num_routes, int64_t dim) {
  for (int64_t t = blockIdx.x; t < num_tokens; t += gridDim.x) {
    for (int64_t c = threadIdx.x; c < dim; c += kThreads) {
      acc_t sum = 0;
      for (int64_t j = 0; j < k; ++j) {
        const int64_t p = inverse[t * k + j];
        if (p >= num_routes) __trap();
        if (p >= 0) sum += (gates ? gates[t * k + j] : acc_t(1)) * static_cast<acc_t>(y[p * dim + c]);
      }
      out[t * dim + c] = static_cast<scalar_t>(sum);
    }
  }
}

Tensor combine_cuda(const Tensor& y, const Tensor& inverse, const OptionalTensor& gates, int64_t k) {
  const torch::stable::accelerator::DeviceGuard guard(y.get_device_index());
  GOSSAMER_CHECK_TENSOR(y, 2, "combine");
  Tensor out = allocate(y, {inverse.numel() / k, y.size(1)});
  if (out.numel() == 0) return out;
  for_scalar_type(y, "combine: y must be float32, float64, bfloat16 or float16", [&](auto scalar) {
    using scalar_t = decltype(scalar);
    combine_kernel<scalar_t><<<num_blocks(out.size(0), 1), kThreads, 0, current_stream(y)>>>(
        y.const_data_ptr<scalar_t>(), inverse.const_data_ptr<int32_t>(), data_or_null<Accumulator<scalar_t>>(gates),
        out.mutable_data_ptr<scalar_t>(), k, out.size(0), y.size(0), y.size(1));
  });
  check_launch("combine");
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CUDA, m) { m.impl("combine", TORCH_BOX(&combine_cuda)); }

}  // namespace gossamer
