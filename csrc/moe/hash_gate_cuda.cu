#include "moe/expert_mlp.cuh"

#include <tuple>

namespace gossamer {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / kWarp;

// Same meaning as hash_gate.h. One block takes one token at a time, one warp one expert of it, thread 0 the gates.
template <typename scalar_t, typename index_t, typename acc_t = Accumulator<scalar_t>>
__global__ void hash_gate_kernel(const scalar_t* __restrict__ x, const scalar_t* __restrict__ weight,
                                 const index_t* __restrict__ table, const int64_t* __restrict__ token_ids,
                                 int32_t* __restrict__ expert_ids, acc_t* __restrict__ gates,
                                 acc_t* __restrict__ logits, int64_t num_tokens, int64_t num_experts, int64_t vocab,
                                 int64_t dim, int64_t k, acc_t scale) {
  for (int64_t t = blockIdx.x; t < num_tokens; t += gridDim.x) {
    const int64_t token = token_ids[t];
    if (token < 0 || token >= vocab) __trap();
    for (int64_t j = threadIdx.x / kWarp; j < k; j += kWarps) {
      const int64_t e = table[token * k + j];
      if (e < 0 || e >= num_experts) __trap();
      const acc_t dot = warp_dot(x + t * dim, weight + e * dim, dim);
      if (threadIdx.x % kWarp != 0) continue;
      expert_ids[t * k + j] = static_cast<int32_t>(e);
      logits[t * k + j] = dot;
      gates[t * k + j] = sqrt((dot > 0 ? dot : acc_t(0)) + log1p(exp(dot > 0 ? -dot : dot)));
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      acc_t sum = acc_t(1e-20);
      for (int64_t j = 0; j < k; ++j) sum += gates[t * k + j];
      for (int64_t j = 0; j < k; ++j) gates[t * k + j] *= scale / sum;
    }
  }
}

std::tuple<Tensor, Tensor, Tensor> hash_gate_cuda(const Tensor& x, const Tensor& weight, const Tensor& table,
                                                  const Tensor& token_ids, double scale) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  GOSSAMER_CHECK_TENSOR(x, 2, "hash_gate");
  GOSSAMER_CHECK_TENSOR(weight, 2, "hash_gate");
  GOSSAMER_CHECK_TENSOR(table, 2, "hash_gate");
  GOSSAMER_CHECK(token_ids.numel() == x.size(0) && weight.size(1) == x.size(1) &&
                     weight.scalar_type() == x.scalar_type() && token_ids.scalar_type() == ScalarType::Long,
                 "hash_gate: tensors must fit");
  const int64_t num_tokens = x.size(0), k = table.size(1);
  const auto sums = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor expert_ids = allocate(token_ids, {num_tokens, k}, ScalarType::Int);
  Tensor gates = allocate(x, {num_tokens, k}, sums);
  Tensor logits = allocate(x, {num_tokens, k}, sums);
  if (expert_ids.numel() == 0) return {gates, logits, expert_ids};
  for_scalar_type(x, "hash_gate: x must be float32, float64, bfloat16 or float16", [&](auto scalar) {
    using scalar_t = decltype(scalar);
    using acc_t = Accumulator<scalar_t>;
    const auto launch = [&](const auto* entries) {
      hash_gate_kernel<scalar_t><<<num_blocks(num_tokens, 1), kThreads, 0, current_stream(x)>>>(
          x.const_data_ptr<scalar_t>(), weight.const_data_ptr<scalar_t>(), entries, token_ids.const_data_ptr<int64_t>(),
          expert_ids.mutable_data_ptr<int32_t>(), gates.mutable_data_ptr<acc_t>(), logits.mutable_data_ptr<acc_t>(),
          num_tokens, weight.size(0), table.size(0), x.size(1), k, static_cast<acc_t>(scale));
    };
    switch (table.scalar_type()) {
      case ScalarType::Short: launch(table.const_data_ptr<int16_t>()); break;
      case ScalarType::Int: launch(table.const_data_ptr<int32_t>()); break;
      case ScalarType::Long: launch(table.const_data_ptr<int64_t>()); break;
      default: GOSSAMER_CHECK(false, "hash_gate: table must be int16, int32 or int64");
    }
  });
  check_launch("hash_gate");
  return {gates, logits, expert_ids};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CUDA, m) { m.impl("hash_gate", TORCH_BOX(&hash_gate_cuda)); }

}  // namespace gossamer
