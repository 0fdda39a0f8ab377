#include "moe/cuda_types.cuh"

#include <tuple>

namespace gossamer {
namespace {

constexpr int kThreads = 256;

// Same meaning as hash_gate_backward.h. One block takes one token at a time: thread 0 the logits, one thread a column.
template <typename scalar_t, typename acc_t = Accumulator<scalar_t>>
__global__ void input_kernel(const acc_t* __restrict__ grad, const scalar_t* __restrict__ weight,
                             const int32_t* __restrict__ expert_ids, const acc_t* __restrict__ logits,
                             acc_t* grad_logits, scalar_t* __restrict__ grad_x, int64_t num_tokens, int64_t dim,
                             int64_t k, acc_t scale) {
  for (int64_t t = blockIdx.x; t < num_tokens; t += gridDim.x) {
    acc_t* out = grad_logits + t * k;
    if (threadIdx.x == 0) {
      acc_t sum = acc_t(1e-20), dot = 0;
      for (int64_t j = 0; j < k; ++j) {
        const acc_t l = logits[t * k + j];
        out[j] = sqrt((l > 0 ? l : acc_t(0)) + log1p(exp(l > 0 ? -l : l)));
        sum += out[j];
        dot += grad[t * k + j] * out[j];
      }
      for (int64_t j = 0; j < k; ++j) {
        const acc_t slope = out[j] > 0 ? 1 / (1 + exp(-logits[t * k + j])) / (2 * out[j]) : acc_t(0);
        out[j] = scale / sum * (grad[t * k + j] - dot / sum) * slope;
      }
    }
    __syncthreads();
    for (int64_t c = threadIdx.x; c < dim; c += kThreads) {
      acc_t sum = 0;
      for (int64_t j = 0; j < k; ++j) sum += out[j] * static_cast<acc_t>(weight[expert_ids[t * k + j] * dim + c]);
      grad_x[t * dim + c] = static_cast<scalar_t>(sum);
    }
  }
}

// One block takes one expert and kThreads columns: it passes over all routes, in order, and adds up those of its
// expert.
template <typename scalar_t, typename acc_t = Accumulator<scalar_t>>
__global__ void weight_kernel(const acc_t* __restrict__ grad_logits, const scalar_t* __restrict__ x,
                              const int32_t* __restrict__ expert_ids, scalar_t* __restrict__ grad_weight,
                              int64_t num_routes, int64_t num_experts, int64_t dim, int64_t k) {
  const int64_t blocks_per_row = (dim + kThreads - 1) / kThreads;
  for (int64_t block = blockIdx.x; block < num_experts * blocks_per_row; block += gridDim.x) {
    const int64_t e = block / blocks_per_row, c = block % blocks_per_row * kThreads + threadIdx.x;
    if (c >= dim) continue;
    acc_t sum = 0;
    for (int64_t r = 0; r < num_routes; ++r) {
      if (expert_ids[r] == e) sum += grad_logits[r] * static_cast<acc_t>(x[r / k * dim + c]);
    }
    grad_weight[e * dim + c] = static_cast<scalar_t>(sum);
  }
}

std::tuple<Tensor, Tensor> hash_gate_backward_cuda(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                   const Tensor& expert_ids, const Tensor& logits, double scale) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  GOSSAMER_CHECK_TENSOR(grad, 2, "hash_gate_backward");
  GOSSAMER_CHECK_TENSOR(x, 2, "hash_gate_backward");
  GOSSAMER_CHECK_TENSOR(weight, 2, "hash_gate_backward");
  const int64_t num_tokens = x.size(0), num_experts = weight.size(0), dim = x.size(1), k = expert_ids.size(1);
  Tensor grad_x = allocate(x, {num_tokens, dim});
  Tensor grad_weight = allocate(weight, {num_experts, dim});
  Tensor grad_logits = allocate(logits, {num_tokens, k});
  for_scalar_type(x, "hash_gate_backward: x must be float32, float64, bfloat16 or float16", [&](auto scalar) {
    using scalar_t = decltype(scalar);
    using acc_t = Accumulator<scalar_t>;
    const int32_t* ids = expert_ids.const_data_ptr<int32_t>();
    acc_t* by_logits = grad_logits.mutable_data_ptr<acc_t>();
    if (grad_x.numel() > 0) {
      input_kernel<scalar_t><<<num_blocks(num_tokens, 1), kThreads, 0, current_stream(x)>>>(
          grad.const_data_ptr<acc_t>(), weight.const_data_ptr<scalar_t>(), ids, logits.const_data_ptr<acc_t>(),
          by_logits, grad_x.mutable_data_ptr<scalar_t>(), num_tokens, dim, k, static_cast<acc_t>(scale));
    }
    if (grad_weight.numel() > 0) {
      weight_kernel<scalar_t><<<num_blocks(num_experts * dim, kThreads), kThreads, 0, current_stream(x)>>>(
          by_logits, x.const_data_ptr<scalar_t>(), ids, grad_weight.mutable_data_ptr<scalar_t>(), num_tokens * k,
          num_experts, dim, k);
    }
  });
  check_launch("hash_gate_backward");
  return {grad_x, grad_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CUDA, m) { m.impl("hash_gate_backward", TORCH_BOX(&hash_gate_backward_cuda)); }

}  // namespace gossamer
