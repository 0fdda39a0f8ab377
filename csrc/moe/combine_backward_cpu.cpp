#define GOSSAMER_KERNEL "moe/combine_backward.h"
#include "common/foreach_isa.h"
#include "common/huge_pages.h"
#include "common/tensor.h"
#include "moe/check_plan.h"

#include <tuple>

namespace gossamer {
namespace {

constexpr int64_t kGrainTokens = 16;

template <typename scalar_t>
void run(const Tensor& grad, const Tensor& y, const Tensor& inverse, const OptionalTensor& gates, Tensor& grad_y,
         Tensor& grad_gates) {
  const int32_t* positions = checked_indices(inverse, -1, y.size(0), "combine_backward: plan must be of this y");
  const int64_t num_tokens = grad.size(0);
  torch::stable::parallel_for(0, num_tokens, kGrainTokens, [&](int64_t begin, int64_t end) {
    const auto backward = [&](auto args, auto loop) {
      using acc_t = typename decltype(args)::acc_t;
      args = {grad.const_data_ptr<scalar_t>(),
              y.const_data_ptr<scalar_t>(),
              positions,
              data_or_null<acc_t>(gates),
              grad_y.mutable_data_ptr<scalar_t>(),
              gates.has_value() ? grad_gates.mutable_data_ptr<acc_t>() : nullptr,
              inverse.numel() / num_tokens,
              y.size(1)};
      loop(args, begin, end);
    };
    switch (current_isa()) {
#if defined(__x86_64__)
      case Isa::kAvx512Bf16:
      case Isa::kAvx512: return backward(avx512::CombineBackwardArgs<scalar_t>{}, avx512::combine_backward<scalar_t>);
      case Isa::kAvx2: return backward(avx2::CombineBackwardArgs<scalar_t>{}, avx2::combine_backward<scalar_t>);
#endif
      default: return backward(scalar::CombineBackwardArgs<scalar_t>{}, scalar::combine_backward<scalar_t>);
    }
  });
}

// The second result is empty where there are no gates.
std::tuple<Tensor, Tensor> combine_backward_cpu(const Tensor& grad, const Tensor& y, const Tensor& inverse,
                                                const OptionalTensor& gates) {
  GOSSAMER_CHECK_TENSOR(grad, 2, "combine_backward");
  GOSSAMER_CHECK_TENSOR(y, 2, "combine_backward");
  Tensor grad_y = with_huge_pages(allocate(y, {y.size(0), y.size(1)}));
  Tensor grad_gates = gates.has_value() ? torch::stable::empty_like(*gates) : allocate(y, {0});
  if (grad.size(0) == 0) return {grad_y, grad_gates};
  switch (y.scalar_type()) {
    case ScalarType::Float: run<float>(grad, y, inverse, gates, grad_y, grad_gates); break;
    case ScalarType::Double: run<double>(grad, y, inverse, gates, grad_y, grad_gates); break;
    case ScalarType::BFloat16: run<BFloat16>(grad, y, inverse, gates, grad_y, grad_gates); break;
    default: GOSSAMER_CHECK(false, "combine_backward: y must be float32, float64 or bfloat16");
  }
  return {grad_y, grad_gates};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("combine_backward", TORCH_BOX(&combine_backward_cpu)); }

}  // namespace gossamer
