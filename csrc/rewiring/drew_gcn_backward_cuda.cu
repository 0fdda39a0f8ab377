#include "rewiring/drew_gcn.cuh"

#include <tuple>

namespace gossamer {
namespace {

// As grad_before_normalize in drew_gcn_backward.h; grad_state is added to, if not null.
template <typename scalar_t>
__global__ void before_normalize_kernel(const scalar_t* __restrict__ out, const scalar_t* __restrict__ length,
                                        const scalar_t* __restrict__ grad, int64_t num_nodes, int64_t num_features,
                                        scalar_t* __restrict__ behind, scalar_t* __restrict__ grad_state) {
  for (int64_t row = first_row(); row < num_nodes; row += row_stride()) {
    const int64_t base = row * num_features;
    scalar_t factor = 1, along = 0;
    if (length) {
      for (int64_t f = lane_id(); f < num_features; f += kLanes) along += out[base + f] * grad[base + f];
      along = warp_sum(along);
      factor = 1 / length[row];
      if (!(length[row] > static_cast<scalar_t>(1e-12))) along = 0;
    }
    for (int64_t f = lane_id(); f < num_features; f += kLanes) {
      const scalar_t g = length ? factor * (grad[base + f] - along * out[base + f]) : grad[base + f];
      behind[base + f] = g;
      if (grad_state) grad_state[base + f] += g;
    }
  }
}

// The gradient behind the ReLU of a hop, and its product with the centered message.
template <typename scalar_t>
struct KeptGradient {
  HopNorm<scalar_t> norm;
  const scalar_t* message;
  const scalar_t* behind;
  int64_t num_features;
  struct Pair {
    double first, second;
  };
  __device__ Pair operator()(int64_t row, int64_t f) const {
    const int64_t i = row * num_features + f;
    const scalar_t kept = norm.normed(message[i], f) > 0 ? behind[i] : scalar_t(0);
    return {double(kept), double(kept) * (double(message[i]) - double(norm.mean[f]))};
  }
};

struct Keep {
  double* sums;
  __device__ void operator()(int64_t i, double total) const { sums[i] = total; }
};

// Gradients of gamma, beta and hop_weight of a hop out of its sums [2, num_features], and the coefficients [3,
// num_features] of grad_message_kernel. One thread: few features, and a sum in order.
template <typename scalar_t>
__global__ void coefficients_kernel(const HopNorm<scalar_t> norm, const double* __restrict__ sums, int64_t num_nodes,
                                    int64_t num_features, bool training, scalar_t* __restrict__ coefficients,
                                    scalar_t* __restrict__ grad_gamma, scalar_t* __restrict__ grad_beta,
                                    scalar_t* __restrict__ grad_hop_weight) {
  const double a = norm.share();
  double grad_a = 0;
  for (int64_t f = 0; f < num_features; ++f) {
    const double deviation = norm.deviation(f), sum = sums[f], product = sums[num_features + f] / deviation;
    grad_gamma[f] = static_cast<scalar_t>(a * product);
    grad_beta[f] = static_cast<scalar_t>(a * sum);
    grad_a += norm.gamma[f] * product + norm.beta[f] * sum;
    const double c0 = a * norm.gamma[f] / deviation;
    coefficients[f] = static_cast<scalar_t>(c0);
    coefficients[num_features + f] = static_cast<scalar_t>(training ? -c0 * product / deviation / num_nodes : 0);
    coefficients[2 * num_features + f] = static_cast<scalar_t>(training ? -c0 * sum / num_nodes : 0);
  }
  *grad_hop_weight = static_cast<scalar_t>(grad_a);
}

// grad_message = inner scale * (c0 * kept gradient + c1 * centered message + c2): ready to be gathered.
template <typename scalar_t>
__global__ void grad_message_kernel(const HopNorm<scalar_t> norm, const scalar_t* __restrict__ message,
                                    const scalar_t* __restrict__ behind, const scalar_t* __restrict__ coefficients,
                                    const scalar_t* __restrict__ scale, int64_t size, int64_t num_features,
                                    scalar_t* __restrict__ grad_message) {
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < size;
       i += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t f = i % num_features;
    const scalar_t kept = norm.normed(message[i], f) > 0 ? behind[i] : scalar_t(0);
    const scalar_t value = coefficients[f] * kept + coefficients[num_features + f] * (message[i] - norm.mean[f]) +
                           coefficients[2 * num_features + f];
    grad_message[i] = (scale ? scale[i / num_features] : scalar_t(1)) * value;
  }
}

template <typename scalar_t>
struct StoreAt {
  scalar_t* out;
  __device__ void operator()(int64_t i, scalar_t total) const { out[i] = total; }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> drew_gcn_backward_cuda(
    const Tensor& grad, const Tensor& out, const Tensor& states, const Tensor& messages, const Tensor& mean,
    const Tensor& var, const Tensor& length, Tensors rowptr, Tensors col, Tensors scale, Integers layer, Integers shell,
    Integers state, const Tensor& weight, const Tensor& gamma, const Tensor& beta, const OptionalTensor& hop_weight,
    double eps, bool training, bool self_loops, bool need_grad_x, Tensors rowptr_t, Tensors col_t) {
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const DrewPlan plan{layer, shell, state, states.dim() == 3 ? states.size(0) : 0};
  check_backward(plan, grad, out, states, messages, mean, var, length, rowptr, col, scale, weight, gamma, beta,
                 hop_weight, rowptr_t, col_t);
  const int64_t num_nodes = grad.size(0), num_features = grad.size(1), hops = plan.num_hops(), size = grad.numel();
  Tensor grad_x = torch::stable::new_zeros(grad, {need_grad_x ? num_nodes : 0, num_features});
  Tensor grad_states = torch::stable::new_zeros(grad, {plan.num_layers - 1, num_nodes, num_features});
  Tensor grad_weight = torch::stable::empty_like(weight);
  Tensor grad_gamma = torch::stable::empty_like(gamma);
  Tensor grad_beta = torch::stable::empty_like(beta);
  Tensor grad_hop_weight = allocate(gamma, {hops});
  for (Tensor* tensor : {&grad_weight, &grad_gamma, &grad_beta, &grad_hop_weight}) torch::stable::zero_(*tensor);
  if (size == 0) return {grad_x, grad_weight, grad_gamma, grad_beta, grad_hop_weight};
  const bool kept = messages.size(0) == hops;
  const int64_t count = num_parts(num_nodes), square = num_features * num_features;
  Tensor scratch = allocate(grad, {4, num_nodes, num_features});
  Tensor parts = allocate(grad, {count + 1, 2, num_features}, ScalarType::Double);
  Tensor weights = allocate(grad, {count, num_features, num_features});
  Tensor coefficients = allocate(grad, {3, num_features});
  const cudaStream_t stream = current_stream(grad);
  dispatch_drew(grad, col, [&](auto scalar, auto index) {
    using scalar_t = decltype(scalar);
    const auto read = [](const Tensor& tensor) { return tensor.const_data_ptr<scalar_t>(); };
    const auto write = [](Tensor& tensor) { return tensor.mutable_data_ptr<scalar_t>(); };
    scalar_t* gathered = write(scratch);
    scalar_t *behind = gathered + size, *grad_message = behind + size, *again = grad_message + size;
    const DeviceStack<scalar_t, decltype(index)> stack{
        plan,       scale,     read(weight), read(gamma), read(beta), data_or_null<scalar_t>(hop_weight),
        read(mean), read(var), eps,          self_loops,  num_nodes,  num_features,
        gathered,   stream};
    const auto grad_state = [&](int64_t s) -> scalar_t* {
      return s ? write(grad_states) + (s - 1) * size : need_grad_x ? write(grad_x) : nullptr;
    };
    const auto backward = [&](int64_t p) {
      const HopNorm<scalar_t> norm = stack.norm(p);
      if (!kept) stack.message(p, rowptr, col, read(states), again);
      const scalar_t* message = kept ? read(messages) + p * size : again;
      double* workspace = parts.mutable_data_ptr<double>();
      double* sums = workspace + count * 2 * num_features;
      stack.column_sums(KeptGradient<scalar_t>{norm, message, behind, num_features}, workspace, Keep{sums});
      coefficients_kernel<<<1, 1, 0, stream>>>(norm, sums, num_nodes, num_features, training, write(coefficients),
                                               write(grad_gamma) + p * num_features,
                                               write(grad_beta) + p * num_features, write(grad_hop_weight) + p);
      const scalar_t* inner = plan.shell[p] < 0 ? nullptr : read(scale[plan.shell[p]]);
      grad_message_kernel<<<num_blocks(size, kThreads), kThreads, 0, stream>>>(
          norm, message, behind, read(coefficients), inner, size, num_features, grad_message);
      const scalar_t* pulled = stack.gather(p, rowptr_t, col_t, grad_message, true);
      const scalar_t* own = read(states) + plan.state[p] * size;
      if (scalar_t* target = grad_state(plan.state[p])) {
        product<scalar_t>({pulled, num_features, 1}, {read(weight) + p * square, num_features, 1}, num_nodes,
                          num_features, num_features, num_features, true, target, stream);
      }
      product<scalar_t>({pulled, 1, num_features}, {own, num_features, 1}, num_features, num_features, num_nodes,
                        kPartRows, false, write(weights), stream);
      sum_parts_kernel<<<num_blocks(square, kThreads), kThreads, 0, stream>>>(
          read(weights), count, square, StoreAt<scalar_t>{write(grad_weight) + p * square});
    };
    for (int64_t t = plan.num_layers - 1; t >= 0; --t) {
      const bool last = t + 1 == plan.num_layers;
      before_normalize_kernel<<<num_blocks(num_nodes, kWarpsPerBlock), kThreads, 0, stream>>>(
          last ? read(out) : read(states) + (t + 1) * size, length.numel() ? read(length) + t * num_nodes : nullptr,
          last ? read(grad) : grad_state(t + 1), num_nodes, num_features, behind, grad_state(t));
      for (int64_t p = plan.first_hop(t); p < plan.first_hop(t + 1); ++p) backward(p);
    }
  });
  check_launch("drew_gcn_backward");
  return {grad_x, grad_weight, grad_gamma, grad_beta, grad_hop_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CUDA, m) { m.impl("drew_gcn_backward", TORCH_BOX(&drew_gcn_backward_cuda)); }

}  // namespace gossamer
