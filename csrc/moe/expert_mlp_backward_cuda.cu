#include <string>
#include <tuple>

#include "moe/expert_mlp.cuh"

namespace gossamer {
namespace {

// One block owns one position; one thread owns columns of d_ff. The gate's gradient is summed by thread 0, in order.
template <typename scalar_t>
__global__ void hidden_backward_kernel(ExpertArgs<scalar_t> args, typename ExpertArgs<scalar_t>::acc_t* grad_gates,
                                       int64_t num_positions) {
  using acc_t = typename ExpertArgs<scalar_t>::acc_t;
  __shared__ acc_t parts[kExpertThreads];
  const bool gated = args.activation == Activation::kSwiglu;
  const int64_t d_hidden = gated ? 2 * args.d_ff : args.d_ff;
  for (int64_t p = blockIdx.x; p < num_positions; p += gridDim.x) {
    const int64_t route = args.order[p];
    const acc_t gate = args.gates ? args.gates[route] : acc_t(1);
    const scalar_t* grad = args.grad + route / args.k * args.d_model;
    const scalar_t* weights = args.w_out + expert_of(args.offsets, args.num_experts, p) * args.d_model * args.d_ff;
    acc_t dot = 0;
    for (int64_t c = threadIdx.x; c < args.d_ff; c += kExpertThreads) {
      acc_t sum = 0;
      for (int64_t i = 0; i < args.d_model; ++i) {
        sum += static_cast<acc_t>(grad[i]) * static_cast<acc_t>(weights[i * args.d_ff + c]);
      }
      const acc_t h = static_cast<acc_t>(args.hidden[p * d_hidden + c]);
      const acc_t up = gated ? static_cast<acc_t>(args.hidden[p * d_hidden + args.d_ff + c]) : h;
      const acc_t activated = static_cast<acc_t>(static_cast<scalar_t>(activate(args.activation, h, up, args.limit)));
      acc_t by_h, by_up;
      activation_slopes(args.activation, h, up, args.limit, &by_h, &by_up);
      args.grad_hidden[p * d_hidden + c] = static_cast<scalar_t>(gate * sum * by_h);
      if (gated) args.grad_hidden[p * d_hidden + args.d_ff + c] = static_cast<scalar_t>(gate * sum * by_up);
      args.activated[p * args.d_ff + c] = static_cast<scalar_t>(gate * activated);
      dot += sum * activated;
    }
    parts[threadIdx.x] = dot;
    __syncthreads();
    if (threadIdx.x == 0 && grad_gates) {
      acc_t total = 0;
      for (int i = 0; i < kExpertThreads; ++i) total += parts[i];
      grad_gates[route] = total;
    }
    __syncthreads();
  }
}

// One block owns one token, one thread columns of d_model, routes in order.
template <typename scalar_t>
__global__ void input_backward_kernel(ExpertArgs<scalar_t> args, const int32_t* __restrict__ inverse,
                                      int64_t d_hidden) {
  using acc_t = typename ExpertArgs<scalar_t>::acc_t;
  for (int64_t t = blockIdx.x; t < args.num_tokens; t += gridDim.x) {
    for (int64_t c = threadIdx.x; c < args.d_model; c += kExpertThreads) {
      acc_t sum = 0;
      for (int64_t j = 0; j < args.k; ++j) {
        const int64_t p = inverse[t * args.k + j];
        if (p < 0) continue;
        const int64_t e = expert_of(args.offsets, args.num_experts, p);
        const scalar_t* weights = args.w_in + e * d_hidden * args.d_model + c;
        for (int64_t i = 0; i < d_hidden; ++i) {
          sum += static_cast<acc_t>(args.grad_hidden[p * d_hidden + i]) * static_cast<acc_t>(weights[i * args.d_model]);
        }
      }
      args.out[t * args.d_model + c] = static_cast<scalar_t>(sum);
    }
  }
}

// out[e, i, c] = sum over positions p of expert e of left[row(p), i] * right[row(p), c], row(p) the token where the
// rows are those of tokens. One block owns one row of out, one thread columns.
template <typename scalar_t>
__global__ void weight_gradient_kernel(ExpertArgs<scalar_t> args, const scalar_t* __restrict__ left, bool left_tokens,
                                       const scalar_t* __restrict__ right, bool right_tokens, int64_t num_rows,
                                       int64_t num_columns, scalar_t* __restrict__ out) {
  using acc_t = typename ExpertArgs<scalar_t>::acc_t;
  for (int64_t row = blockIdx.x; row < args.num_experts * num_rows; row += gridDim.x) {
    const int64_t e = row / num_rows, i = row % num_rows;
    for (int64_t c = threadIdx.x; c < num_columns; c += kExpertThreads) {
      acc_t sum = 0;
      for (int64_t p = args.offsets[e]; p < args.offsets[e + 1]; ++p) {
        const int64_t token = args.order[p] / args.k;
        sum += static_cast<acc_t>(left[(left_tokens ? token : p) * num_rows + i]) *
               static_cast<acc_t>(right[(right_tokens ? token : p) * num_columns + c]);
      }
      out[row * num_columns + c] = static_cast<scalar_t>(sum);
    }
  }
}

std::tuple<Tensor, Tensor, Tensor, Tensor> expert_mlp_backward_cuda(const Tensor& grad, const Tensor& x,
                                                                    const Tensor& order, const Tensor& offsets,
                                                                    const OptionalTensor& gates, const Tensor& w_in,
                                                                    const Tensor& w_out, const Tensor& hidden,
                                                                    int64_t k, std::string activation, double limit,
                                                                    bool weights) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  GOSSAMER_CHECK_TENSOR(grad, 2, "expert_mlp_backward");
  const int64_t num_positions = order.size(0), d_hidden = w_in.size(1), d_ff = w_out.size(2), d_model = x.size(1);
  const ScalarType sums = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const int64_t num_experts = weights ? w_in.size(0) : 0;
  Tensor grad_x = allocate(x, {x.size(0), d_model});
  Tensor grad_gates = allocate(x, {gates.has_value() ? x.size(0) : 0, k}, sums);
  Tensor grad_w_in = allocate(w_in, {num_experts, d_hidden, d_model});
  Tensor grad_w_out = allocate(w_out, {num_experts, d_model, d_ff});
  Tensor activated = allocate(x, {num_positions, d_ff});
  Tensor grad_hidden = allocate(x, {num_positions, d_hidden});
  torch::stable::fill_(grad_gates, 0.0);
  const Tensor inverse = inverse_of(order, x.size(0) * k);
  const cudaStream_t stream = current_stream(x);
  for_scalar_type(x, "expert_mlp_backward: x must be float32, float64, bfloat16 or float16", [&](auto scalar) {
    using scalar_t = decltype(scalar);
    using acc_t = typename ExpertArgs<scalar_t>::acc_t;
    auto args = expert_args<scalar_t>(x, order, offsets, gates, w_in, w_out, k, activation, limit);
    args.grad = grad.const_data_ptr<scalar_t>();
    args.hidden = const_cast<scalar_t*>(hidden.const_data_ptr<scalar_t>());
    args.activated = activated.mutable_data_ptr<scalar_t>();
    args.grad_hidden = grad_hidden.mutable_data_ptr<scalar_t>();
    args.out = grad_x.mutable_data_ptr<scalar_t>();
    hidden_backward_kernel<<<num_blocks(num_positions, 1), kExpertThreads, 0, stream>>>(
        args, gates.has_value() ? grad_gates.mutable_data_ptr<acc_t>() : nullptr, num_positions);
    input_backward_kernel<<<num_blocks(x.size(0), 1), kExpertThreads, 0, stream>>>(
        args, inverse.const_data_ptr<int32_t>(), d_hidden);
    if (!weights) return;
    weight_gradient_kernel<<<num_blocks(num_experts * d_model, 1), kExpertThreads, 0, stream>>>(
        args, args.grad, true, args.activated, false, d_model, d_ff, grad_w_out.mutable_data_ptr<scalar_t>());
    weight_gradient_kernel<<<num_blocks(num_experts * d_hidden, 1), kExpertThreads, 0, stream>>>(
        args, args.grad_hidden, false, args.x, true, d_hidden, d_model, grad_w_in.mutable_data_ptr<scalar_t>());
  });
  check_launch("expert_mlp_backward");
  return {grad_x, grad_gates, grad_w_in, grad_w_out};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CUDA, m) { m.impl("expert_mlp_backward", TORCH_BOX(&expert_mlp_backward_cuda)); }

}  // namespace gossamer
