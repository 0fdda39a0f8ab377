#include "moe/score.h"
#define GOSSAMER_KERNEL "moe/top_k_gate_backward.h"
#include "common/foreach_isa.h"
#include "common/tensor.h"

#include <string>

namespace gossamer {
namespace {

constexpr int64_t kGrainTokens = 64;

template <typename scalar_t, typename Call>
void for_isa(const Call& call) {
  switch (current_isa()) {
#if defined(__x86_64__)
    case Isa::kAvx512Bf16:
    case Isa::kAvx512: return call(avx512::TopKGateBackwardArgs<scalar_t>{}, avx512::top_k_gate_backward<scalar_t>);
    case Isa::kAvx2: return call(avx2::TopKGateBackwardArgs<scalar_t>{}, avx2::top_k_gate_backward<scalar_t>);
#endif
    default: return call(scalar::TopKGateBackwardArgs<scalar_t>{}, scalar::top_k_gate_backward<scalar_t>);
  }
}

Tensor top_k_gate_backward_cpu(const Tensor& grad, const OptionalTensor& grad_sums, const Tensor& logits,
                               const Tensor& expert_ids, const Tensor& normalizers, std::string name, bool normalize,
                               double scale) {
  GOSSAMER_CHECK_TENSOR(grad, 2, "top_k_gate_backward");
  GOSSAMER_CHECK_TENSOR(logits, 2, "top_k_gate_backward");
  GOSSAMER_CHECK_TENSOR(expert_ids, 2, "top_k_gate_backward");
  GOSSAMER_CHECK_TENSOR(normalizers, 1, "top_k_gate_backward");
  const int64_t num_tokens = logits.size(0), num_experts = logits.size(1), k = grad.size(1);
  const auto of_type = [&](const Tensor& tensor) { return tensor.scalar_type() == logits.scalar_type(); };
  GOSSAMER_CHECK(score_named(name) != Score::kUnknown && grad.size(0) == num_tokens &&
                     expert_ids.numel() == grad.numel() && normalizers.numel() == num_tokens && of_type(grad) &&
                     of_type(normalizers) &&
                     (!grad_sums.has_value() || (grad_sums->numel() == num_experts && of_type(*grad_sums))),
                 "top_k_gate_backward: tensors must be those of the forward");
  const int32_t* ids = expert_ids.const_data_ptr<int32_t>();
  const bool valid = std::all_of(ids, ids + expert_ids.numel(), [&](int32_t e) { return e >= 0 && e < num_experts; });
  GOSSAMER_CHECK(valid, "top_k_gate_backward: expert_ids must be in [0, num_experts)");
  Tensor grad_logits = allocate(logits, {num_tokens, num_experts});
  const auto launch = [&](auto scalar) {
    using scalar_t = decltype(scalar);
    for_isa<scalar_t>([&](auto args, auto loop) {
      args = {grad.const_data_ptr<scalar_t>(),
              data_or_null<scalar_t>(grad_sums),
              logits.const_data_ptr<scalar_t>(),
              ids,
              normalizers.const_data_ptr<scalar_t>(),
              grad_logits.mutable_data_ptr<scalar_t>(),
              num_experts,
              k,
              static_cast<scalar_t>(scale),
              score_named(name),
              normalize};
      torch::stable::parallel_for(0, num_tokens, kGrainTokens, [&](int64_t begin, int64_t end) {
        std::vector<scalar_t> scratch(2 * num_experts);
        loop(args, scratch.data(), scratch.data() + num_experts, begin, end);
      });
    });
  };
  switch (logits.scalar_type()) {
    case ScalarType::Float: launch(float{}); break;
    case ScalarType::Double: launch(double{}); break;
    default: GOSSAMER_CHECK(false, "top_k_gate_backward: logits must be float32 or float64");
  }
  return grad_logits;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("top_k_gate_backward", TORCH_BOX(&top_k_gate_backward_cpu)); }

}  // namespace gossamer
