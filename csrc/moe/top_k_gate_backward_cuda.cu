#include "moe/top_k_gate.cuh"

#include <string>

namespace gossamer {
namespace {

template <typename scalar_t>
struct GateBackwardArgs {
  const scalar_t* grad;
  const scalar_t* grad_sums;
  const scalar_t* logits;
  const int32_t* expert_ids;
  const scalar_t* normalizers;
  scalar_t* grad_logits;
  int64_t num_tokens;
  int64_t num_experts;
  int64_t k;
  scalar_t scale;
  Score score;
  bool normalize;
};

// Lane 0 adds the gradients of the chosen scores to the row.
template <typename scalar_t>
__device__ void add_chosen(const GateBackwardArgs<scalar_t>& args, int64_t t, const scalar_t* logits,
                           scalar_t* slopes) {
  const scalar_t* grad = args.grad + t * args.k;
  const int32_t* ids = args.expert_ids + t * args.k;
  scalar_t sum = 1, shared = 0;
  if (args.normalize) {
    sum = scalar_t(1e-20);
    for (int64_t j = 0; j < args.k; ++j) {
      const scalar_t s = score_of(args.score, logits[ids[j]], args.normalizers[t]);
      sum += s;
      shared += grad[j] * s;
    }
    shared /= sum;
  }
  for (int64_t j = 0; j < args.k; ++j) slopes[ids[j]] += args.scale / sum * (grad[j] - shared);
}

// Same meaning as top_k_gate_backward.h. One warp takes one token; its row of grad_logits holds the slopes meanwhile.
template <typename scalar_t>
__global__ void top_k_gate_backward_kernel(GateBackwardArgs<scalar_t> args) {
  const int64_t warp = threadIdx.x / kGateWarp, lane = threadIdx.x % kGateWarp, stride = gridDim.x * kGateWarps;
  const int64_t n = args.num_experts;
  const bool softmax = args.score == Score::kSoftmax;
  for (int64_t t = static_cast<int64_t>(blockIdx.x) * kGateWarps + warp; t < args.num_tokens; t += stride) {
    const scalar_t* logits = args.logits + t * n;
    scalar_t* out = args.grad_logits + t * n;
    const scalar_t total = softmax ? scalar_t(1) : args.normalizers[t];
    const auto score = [&](int64_t e) { return score_of(args.score, logits[e], args.normalizers[t]); };
    scalar_t mean = 0;
    if (!softmax && args.grad_sums != nullptr) {
      for (int64_t e = lane; e < n; e += kGateWarp) mean += args.grad_sums[e] * score(e);
      mean = warp_sum(mean) / total;
    }
    for (int64_t e = lane; e < n; e += kGateWarp) {
      out[e] = args.grad_sums == nullptr ? scalar_t(0) : (args.grad_sums[e] - mean) / total;
    }
    __syncwarp();
    if (lane == 0) add_chosen(args, t, logits, out);
    __syncwarp();
    scalar_t dot = 0;
    if (softmax) {
      for (int64_t e = lane; e < n; e += kGateWarp) dot += out[e] * score(e);
      dot = warp_sum(dot);
    }
    for (int64_t e = lane; e < n; e += kGateWarp) {
      const scalar_t s = score(e);
      if (softmax) {
        out[e] = s * (out[e] - dot);
      } else if (args.score == Score::kSigmoid) {
        out[e] *= s * exact_sigmoid(-logits[e]);
      } else {
        out[e] *= s > 0 ? exact_sigmoid(logits[e]) / (2 * s) : scalar_t(0);
      }
    }
  }
}

Tensor top_k_gate_backward_cuda(const Tensor& grad, const OptionalTensor& grad_sums, const Tensor& logits,
                                const Tensor& expert_ids, const Tensor& normalizers, std::string name, bool normalize,
                                double scale) {
  const torch::stable::accelerator::DeviceGuard guard(logits.get_device_index());
  GOSSAMER_CHECK_TENSOR(grad, 2, "top_k_gate_backward");
  GOSSAMER_CHECK_TENSOR(logits, 2, "top_k_gate_backward");
  const int64_t num_tokens = logits.size(0), num_experts = logits.size(1);
  GOSSAMER_CHECK(score_named(name) != Score::kUnknown && grad.size(0) == num_tokens &&
                     expert_ids.numel() == grad.numel() && normalizers.numel() == num_tokens &&
                     (!grad_sums.has_value() || grad_sums->numel() == num_experts),
                 "top_k_gate_backward: tensors must be those of the forward");
  Tensor grad_logits = allocate(logits, {num_tokens, num_experts});
  if (num_tokens == 0) return grad_logits;
  const auto launch = [&](auto scalar) {
    using scalar_t = decltype(scalar);
    const GateBackwardArgs<scalar_t> args{grad.const_data_ptr<scalar_t>(),
                                          data_or_null<scalar_t>(grad_sums),
                                          logits.const_data_ptr<scalar_t>(),
                                          expert_ids.const_data_ptr<int32_t>(),
                                          normalizers.const_data_ptr<scalar_t>(),
                                          grad_logits.mutable_data_ptr<scalar_t>(),
                                          num_tokens,
                                          num_experts,
                                          grad.size(1),
                                          static_cast<scalar_t>(scale),
                                          score_named(name),
                                          normalize};
    top_k_gate_backward_kernel<<<num_blocks(num_tokens, kGateWarps), kGateThreads, 0, current_stream(logits)>>>(args);
  };
  switch (logits.scalar_type()) {
    case ScalarType::Float: launch(float{}); break;
    case ScalarType::Double: launch(double{}); break;
    default: GOSSAMER_CHECK(false, "top_k_gate_backward: logits must be float32 or float64");
  }
  check_launch("top_k_gate_backward");
  return grad_logits;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CUDA, m) { m.impl("top_k_gate_backward", TORCH_BOX(&top_k_gate_backward_cuda)); }

}  // namespace gossamer
