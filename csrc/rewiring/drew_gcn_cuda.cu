#include "rewiring/drew_gcn.cuh"

#include <tuple>

namespace gossamer {
namespace {

// out = x / length of its row; one warp per row.
template <typename scalar_t>
__global__ void normalize_kernel(int64_t num_nodes, int64_t num_features, scalar_t* __restrict__ out,
                                 scalar_t* __restrict__ length) {
  for (int64_t row = first_row(); row < num_nodes; row += row_stride()) {
    scalar_t squares = 0;
    for (int64_t f = lane_id(); f < num_features; f += kLanes) {
      squares += out[row * num_features + f] * out[row * num_features + f];
    }
    const scalar_t divisor = max(sqrt(warp_sum(squares)), static_cast<scalar_t>(1e-12));
    for (int64_t f = lane_id(); f < num_features; f += kLanes) out[row * num_features + f] /= divisor;
    if (lane_id() == 0) length[row] = divisor;
  }
}

template <typename scalar_t>
struct ValueOf {
  const scalar_t* message;
  int64_t num_features;
  struct Pair {
    double first, second;
  };
  __device__ Pair operator()(int64_t row, int64_t f) const { return {double(message[row * num_features + f]), 0}; }
};

template <typename scalar_t>
struct SquareOf {
  const scalar_t* message;
  const scalar_t* mean;
  int64_t num_features;
  struct Pair {
    double first, second;
  };
  __device__ Pair operator()(int64_t row, int64_t f) const {
    const double difference = double(message[row * num_features + f]) - double(mean[f]);
    return {difference * difference, 0};
  }
};

// out[f] = first sum / rows.
template <typename scalar_t>
struct MeanInto {
  scalar_t* out;
  int64_t rows;
  int64_t num_features;
  __device__ void operator()(int64_t i, double total) const {
    if (i < num_features) out[i] = static_cast<scalar_t>(total / rows);
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> drew_gcn_cuda(
    const Tensor& x, Tensors rowptr, Tensors col, Tensors scale, Integers layer, Integers shell, Integers state,
    int64_t num_layers, const Tensor& weight, const Tensor& gamma, const Tensor& beta, const OptionalTensor& hop_weight,
    const OptionalTensor& mean, const OptionalTensor& var, double eps, bool l2_norm, bool self_loops,
    bool keep_messages, Tensors, Tensors) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  const DrewPlan plan{layer, shell, state, num_layers};
  GOSSAMER_CHECK_TENSOR(x, 2, "drew_gcn");
  check_plan(plan, rowptr.size());
  check_shells(x, rowptr, col, scale);
  check_parameters(plan, x, weight, gamma, beta, hop_weight, mean, var);
  const int64_t num_nodes = x.size(0), num_features = x.size(1), hops = plan.num_hops(), size = x.numel();
  Tensor out = torch::stable::empty_like(x);
  Tensor states = allocate(x, {num_layers, num_nodes, num_features});
  Tensor messages = allocate(x, {keep_messages ? hops : 0, num_nodes, num_features});
  Tensor out_mean = allocate(x, {hops, num_features});
  Tensor out_var = allocate(x, {hops, num_features});
  Tensor length = allocate(x, {l2_norm ? num_layers : 0, num_nodes});
  if (size == 0) return {out, states, messages, out_mean, out_var, length};
  Tensor scratch = allocate(x, {keep_messages ? 1 : 1 + widest_layer(plan), num_nodes, num_features});
  Tensor parts = allocate(x, {num_parts(num_nodes), 2, num_features}, ScalarType::Double);
  const cudaStream_t stream = current_stream(x);
  dispatch_drew(x, col, [&](auto scalar, auto index) {
    using scalar_t = decltype(scalar);
    scalar_t* means = out_mean.mutable_data_ptr<scalar_t>();
    scalar_t* vars = out_var.mutable_data_ptr<scalar_t>();
    scalar_t* all = states.mutable_data_ptr<scalar_t>();
    scalar_t* sums = scratch.mutable_data_ptr<scalar_t>();
    const DeviceStack<scalar_t, decltype(index)> stack{plan,
                                                       scale,
                                                       weight.const_data_ptr<scalar_t>(),
                                                       gamma.const_data_ptr<scalar_t>(),
                                                       beta.const_data_ptr<scalar_t>(),
                                                       data_or_null<scalar_t>(hop_weight),
                                                       means,
                                                       vars,
                                                       eps,
                                                       self_loops,
                                                       num_nodes,
                                                       num_features,
                                                       sums,
                                                       stream};
    const auto copy = [&](scalar_t* to, const scalar_t* from, int64_t count) {
      cudaMemcpyAsync(to, from, count * sizeof(scalar_t), cudaMemcpyDeviceToDevice, stream);
    };
    copy(all, x.const_data_ptr<scalar_t>(), size);
    if (mean) copy(means, mean->const_data_ptr<scalar_t>(), hops * num_features);
    if (var) copy(vars, var->const_data_ptr<scalar_t>(), hops * num_features);
    for (int64_t t = 0; t < num_layers; ++t) {
      const int64_t first = plan.first_hop(t), end = plan.first_hop(t + 1);
      scalar_t* total = t + 1 < num_layers ? all + (t + 1) * size : out.mutable_data_ptr<scalar_t>();
      if (first == end) copy(total, all + t * size, size);
      for (int64_t p = first; p < end; ++p) {
        scalar_t* message = keep_messages ? messages.mutable_data_ptr<scalar_t>() + p * size : sums + size;
        stack.message(p, rowptr, col, all, message);
        if (!mean) {
          scalar_t* m = means + p * num_features;
          const auto into = [&](scalar_t* result) { return MeanInto<scalar_t>{result, num_nodes, num_features}; };
          double* workspace = parts.mutable_data_ptr<double>();
          stack.column_sums(ValueOf<scalar_t>{message, num_features}, workspace, into(m));
          stack.column_sums(SquareOf<scalar_t>{message, m, num_features}, workspace, into(vars + p * num_features));
        }
        add_hop_kernel<<<num_blocks(size, kThreads), kThreads, 0, stream>>>(
            stack.norm(p), message, p == first ? all + t * size : total, size, num_features, total);
      }
      if (l2_norm) {
        normalize_kernel<<<num_blocks(num_nodes, kWarpsPerBlock), kThreads, 0, stream>>>(
            num_nodes, num_features, total, length.mutable_data_ptr<scalar_t>() + t * num_nodes);
      }
    }
  });
  check_launch("drew_gcn");
  return {out, states, messages, out_mean, out_var, length};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CUDA, m) { m.impl("drew_gcn", TORCH_BOX(&drew_gcn_cuda)); }

}  // namespace gossamer
