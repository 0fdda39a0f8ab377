#define GOSSAMER_KERNEL "moe/hash_gate_backward.h"
#include "common/foreach_isa.h"
#include "common/tensor.h"

#include <tuple>
#include <vector>

namespace gossamer {
namespace {

constexpr int64_t kGrainTokens = 8, kColumns = 256;

// Calls call(args, loop over tokens, loop over columns) of the instruction set in force.
template <typename scalar_t, typename Call>
void for_isa(const Call& call) {
#define GOSSAMER_CALL(ISA)                                                             \
  call(ISA::HashGateBackwardArgs<scalar_t>{}, ISA::hash_gate_input_backward<scalar_t>, \
       ISA::hash_gate_weight_backward<scalar_t>)
  switch (current_isa()) {
#if defined(__x86_64__)
    case Isa::kAvx512Bf16:
    case Isa::kAvx512: return GOSSAMER_CALL(avx512);
    case Isa::kAvx2: return GOSSAMER_CALL(avx2);
#endif
    default: return GOSSAMER_CALL(scalar);
  }
#undef GOSSAMER_CALL
}

// Gradients of x and weight.
std::tuple<Tensor, Tensor> hash_gate_backward_cpu(const Tensor& grad, const Tensor& x, const Tensor& weight,
                                                  const Tensor& expert_ids, const Tensor& logits, double scale) {
  GOSSAMER_CHECK_TENSOR(grad, 2, "hash_gate_backward");
  GOSSAMER_CHECK_TENSOR(x, 2, "hash_gate_backward");
  GOSSAMER_CHECK_TENSOR(weight, 2, "hash_gate_backward");
  GOSSAMER_CHECK_TENSOR(expert_ids, 2, "hash_gate_backward");
  GOSSAMER_CHECK_TENSOR(logits, 2, "hash_gate_backward");
  const int64_t num_tokens = x.size(0), num_experts = weight.size(0), dim = x.size(1), k = expert_ids.size(1);
  GOSSAMER_CHECK(grad.numel() == num_tokens * k && logits.numel() == num_tokens * k &&
                     expert_ids.numel() == num_tokens * k && weight.size(1) == dim &&
                     grad.scalar_type() == logits.scalar_type() && weight.scalar_type() == x.scalar_type(),
                 "hash_gate_backward: tensors must be those of the forward");
  const int32_t* ids = expert_ids.const_data_ptr<int32_t>();
  const bool valid = std::all_of(ids, ids + num_tokens * k, [&](int32_t e) { return e >= 0 && e < num_experts; });
  GOSSAMER_CHECK(valid, "hash_gate_backward: expert_ids must be in [0, num_experts)");
  Tensor grad_x = allocate(x, {num_tokens, dim});
  Tensor grad_weight = allocate(weight, {num_experts, dim});
  Tensor grad_logits = allocate(logits, {num_tokens, k});
  const auto launch = [&](auto scalar) {
    using scalar_t = decltype(scalar);
    for_isa<scalar_t>([&](auto args, auto by_tokens, auto by_columns) {
      using acc_t = typename decltype(args)::acc_t;
      args = {grad.const_data_ptr<acc_t>(),
              x.const_data_ptr<scalar_t>(),
              weight.const_data_ptr<scalar_t>(),
              ids,
              logits.const_data_ptr<acc_t>(),
              grad_logits.mutable_data_ptr<acc_t>(),
              grad_x.mutable_data_ptr<scalar_t>(),
              grad_weight.mutable_data_ptr<scalar_t>(),
              num_tokens,
              num_experts,
              dim,
              k,
              static_cast<acc_t>(scale)};
      torch::stable::parallel_for(0, num_tokens, kGrainTokens, [&](int64_t begin, int64_t end) {
        std::vector<acc_t> sums(dim);
        by_tokens(args, sums.data(), begin, end);
      });
      torch::stable::parallel_for(0, (dim + kColumns - 1) / kColumns, 1, [&](int64_t first, int64_t last) {
        std::vector<acc_t> sums(num_experts * kColumns);
        for (int64_t block = first; block < last; ++block) {
          by_columns(args, sums.data(), block * kColumns, std::min(dim, (block + 1) * kColumns));
        }
      });
    });
  };
  switch (x.scalar_type()) {
    case ScalarType::Float: launch(float{}); break;
    case ScalarType::Double: launch(double{}); break;
    case ScalarType::BFloat16: launch(BFloat16{}); break;
    default: GOSSAMER_CHECK(false, "hash_gate_backward: x must be float32, float64 or bfloat16");
  }
  return {grad_x, grad_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("hash_gate_backward", TORCH_BOX(&hash_gate_backward_cpu)); }

}  // namespace gossamer
