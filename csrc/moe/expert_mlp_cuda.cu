#include <string>
#include <tuple>

#include "moe/expert_mlp.cuh"

namespace gossamer {
namespace {

// One block owns one position; one warp computes one column of the hidden row at a time.
template <typename scalar_t>
__global__ void expert_hidden_kernel(ExpertArgs<scalar_t> args, int64_t num_positions) {
  using acc_t = typename ExpertArgs<scalar_t>::acc_t;
  const bool gated = args.activation == Activation::kSwiglu;
  const int64_t d_hidden = gated ? 2 * args.d_ff : args.d_ff;
  for (int64_t p = blockIdx.x; p < num_positions; p += gridDim.x) {
    const scalar_t* x = args.x + args.order[p] / args.k * args.d_model;
    const scalar_t* weights = args.w_in + expert_of(args.offsets, args.num_experts, p) * d_hidden * args.d_model;
    for (int64_t c = threadIdx.x / kWarp; c < args.d_ff; c += kExpertThreads / kWarp) {
      const scalar_t h = static_cast<scalar_t>(warp_dot(x, weights + c * args.d_model, args.d_model));
      const scalar_t up =
          gated ? static_cast<scalar_t>(warp_dot(x, weights + (args.d_ff + c) * args.d_model, args.d_model)) : h;
      if (threadIdx.x % kWarp != 0) continue;
      const acc_t activated = activate(args.activation, static_cast<acc_t>(h), static_cast<acc_t>(up), args.limit);
      args.activated[p * args.d_ff + c] = static_cast<scalar_t>(activated);
      if (args.hidden) args.hidden[p * d_hidden + c] = h;
      if (args.hidden && gated) args.hidden[p * d_hidden + args.d_ff + c] = up;
    }
  }
}

// One block owns one token; one warp computes one column of the output at a time, routes in order.
template <typename scalar_t>
__global__ void expert_output_kernel(ExpertArgs<scalar_t> args, const int32_t* __restrict__ inverse) {
  using acc_t = typename ExpertArgs<scalar_t>::acc_t;
  for (int64_t t = blockIdx.x; t < args.num_tokens; t += gridDim.x) {
    for (int64_t c = threadIdx.x / kWarp; c < args.d_model; c += kExpertThreads / kWarp) {
      acc_t sum = 0;
      for (int64_t j = 0; j < args.k; ++j) {
        const int64_t p = inverse[t * args.k + j];
        if (p < 0) continue;
        const int64_t e = expert_of(args.offsets, args.num_experts, p);
        const acc_t gate = args.gates ? args.gates[t * args.k + j] : acc_t(1);
        sum +=
            gate * warp_dot(args.activated + p * args.d_ff, args.w_out + (e * args.d_model + c) * args.d_ff, args.d_ff);
      }
      if (threadIdx.x % kWarp == 0) args.out[t * args.d_model + c] = static_cast<scalar_t>(sum);
    }
  }
}

std::tuple<Tensor, Tensor> expert_mlp_cuda(const Tensor& x, const Tensor& order, const Tensor& offsets,
                                           const OptionalTensor& gates, const Tensor& w_in, const Tensor& w_out,
                                           int64_t k, std::string activation, double limit, bool save_hidden) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  GOSSAMER_CHECK_TENSOR(x, 2, "expert_mlp");
  GOSSAMER_CHECK_TENSOR(w_in, 3, "expert_mlp");
  GOSSAMER_CHECK_TENSOR(w_out, 3, "expert_mlp");
  const int64_t num_positions = order.size(0);
  Tensor out = allocate(x, {x.size(0), x.size(1)});
  Tensor hidden = allocate(x, {save_hidden ? num_positions : 0, w_in.size(1)});
  Tensor activated = allocate(x, {num_positions, w_out.size(2)});
  if (out.numel() == 0) return {out, hidden};
  const Tensor inverse = inverse_of(order, x.size(0) * k);
  for_scalar_type(x, "expert_mlp: x must be float32, float64, bfloat16 or float16", [&](auto scalar) {
    using scalar_t = decltype(scalar);
    auto args = expert_args<scalar_t>(x, order, offsets, gates, w_in, w_out, k, activation, limit);
    args.hidden = save_hidden ? hidden.mutable_data_ptr<scalar_t>() : nullptr;
    args.activated = activated.mutable_data_ptr<scalar_t>();
    args.out = out.mutable_data_ptr<scalar_t>();
    expert_hidden_kernel<<<num_blocks(num_positions, 1), kExpertThreads, 0, current_stream(x)>>>(args, num_positions);
    expert_output_kernel<<<num_blocks(x.size(0), 1), kExpertThreads, 0, current_stream(x)>>>(
        args, inverse.const_data_ptr<int32_t>());
  });
  check_launch("expert_mlp");
  return {out, hidden};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CUDA, m) { m.impl("expert_mlp", TORCH_BOX(&expert_mlp_cuda)); }

}  // namespace gossamer
