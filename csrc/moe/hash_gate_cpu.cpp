#define GOSSAMER_KERNEL "moe/hash_gate.h"
#define GOSSAMER_KERNEL_BF16
#include "common/foreach_isa.h"
#include "moe/selected_experts.h"

#include <tuple>

namespace gossamer {
namespace {

constexpr int64_t kGrainTokens = 8;

// Calls call(args, loop) with the arguments and the loop of the instruction set in force.
template <typename scalar_t, typename Call>
void for_isa(const Call& call) {
  switch (current_isa()) {
#if defined(__x86_64__)
    case Isa::kAvx512Bf16: return call(avx512_bf16::HashGateArgs<scalar_t>{}, avx512_bf16::hash_gate<scalar_t>);
    case Isa::kAvx512: return call(avx512::HashGateArgs<scalar_t>{}, avx512::hash_gate<scalar_t>);
    case Isa::kAvx2: return call(avx2::HashGateArgs<scalar_t>{}, avx2::hash_gate<scalar_t>);
#endif
    default: return call(scalar::HashGateArgs<scalar_t>{}, scalar::hash_gate<scalar_t>);
  }
}

// Gates, the logits that backward needs, and expert ids (int32), all [num_tokens, k].
std::tuple<Tensor, Tensor, Tensor> hash_gate_cpu(const Tensor& x, const Tensor& weight, const Tensor& table,
                                                 const Tensor& token_ids, double scale) {
  GOSSAMER_CHECK_TENSOR(x, 2, "hash_gate");
  GOSSAMER_CHECK_TENSOR(weight, 2, "hash_gate");
  GOSSAMER_CHECK_TENSOR(table, 2, "hash_gate");
  GOSSAMER_CHECK_TENSOR(token_ids, 1, "hash_gate");
  GOSSAMER_CHECK(token_ids.scalar_type() == ScalarType::Long, "hash_gate: token_ids must be int64");
  GOSSAMER_CHECK(token_ids.size(0) == x.size(0) && weight.size(1) == x.size(1), "hash_gate: shapes must fit");
  GOSSAMER_CHECK(weight.scalar_type() == x.scalar_type(), "hash_gate: weight must be of the type of x");
  const int64_t num_tokens = x.size(0), k = table.size(1);
  const auto sums = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor expert_ids = allocate(token_ids, {num_tokens, k}, ScalarType::Int);
  Tensor gates = allocate(x, {num_tokens, k}, sums);
  Tensor logits = allocate(x, {num_tokens, k}, sums);
  int32_t* ids = expert_ids.mutable_data_ptr<int32_t>();
  look_up_experts(table, token_ids, weight.size(0), ids);
  const auto launch = [&](auto scalar) {
    using scalar_t = decltype(scalar);
    for_isa<scalar_t>([&](auto args, auto loop) {
      using acc_t = typename decltype(args)::acc_t;
      args = {x.const_data_ptr<scalar_t>(),
              weight.const_data_ptr<scalar_t>(),
              ids,
              logits.mutable_data_ptr<acc_t>(),
              gates.mutable_data_ptr<acc_t>(),
              x.size(1),
              k,
              static_cast<acc_t>(scale)};
      torch::stable::parallel_for(0, num_tokens, kGrainTokens,
                                  [&](int64_t begin, int64_t end) { loop(args, begin, end); });
    });
  };
  switch (x.scalar_type()) {
    case ScalarType::Float: launch(float{}); break;
    case ScalarType::Double: launch(double{}); break;
    case ScalarType::BFloat16: launch(BFloat16{}); break;
    default: GOSSAMER_CHECK(false, "hash_gate: x must be float32, float64 or bfloat16");
  }
  return {gates, logits, expert_ids};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("hash_gate", TORCH_BOX(&hash_gate_cpu)); }

}  // namespace gossamer
