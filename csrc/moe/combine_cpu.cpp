#define GOSSAMER_KERNEL "moe/combine.h"
#include "common/foreach_isa.h"
#include "common/huge_pages.h"
#include "common/tensor.h"
#include "moe/check_plan.h"

namespace gossamer {
namespace {

constexpr int64_t kGrainTokens = 16;

template <typename scalar_t>
void run(const Tensor& y, const Tensor& inverse, const OptionalTensor& gates, int64_t k, Tensor& out) {
  const int32_t* positions = checked_indices(inverse, -1, y.size(0), "combine: plan must be of this y");
  scalar_t* result = out.mutable_data_ptr<scalar_t>();
  torch::stable::parallel_for(0, out.size(0), kGrainTokens, [&](int64_t begin, int64_t end) {
    const auto combine = [&](auto args, auto loop) {
      using acc_t = std::remove_cv_t<std::remove_pointer_t<decltype(args.gates)>>;
      args = {y.const_data_ptr<scalar_t>(), positions, data_or_null<acc_t>(gates), k, y.size(1)};
      loop(args, result, begin, end);
    };
    switch (current_isa()) {
#if defined(__x86_64__)
      case Isa::kAvx512Bf16:
      case Isa::kAvx512: return combine(avx512::CombineArgs<scalar_t>{}, avx512::combine<scalar_t>);
      case Isa::kAvx2: return combine(avx2::CombineArgs<scalar_t>{}, avx2::combine<scalar_t>);
#endif
      default: return combine(scalar::CombineArgs<scalar_t>{}, scalar::combine<scalar_t>);
    }
  });
}

Tensor combine_cpu(const Tensor& y, const Tensor& inverse, const OptionalTensor& gates, int64_t k) {
  GOSSAMER_CHECK_TENSOR(y, 2, "combine");
  GOSSAMER_CHECK(k >= 1 && inverse.numel() % k == 0, "combine: plan must have k routes per token");
  GOSSAMER_CHECK(!gates.has_value() || gates->numel() == inverse.numel(), "combine: gates must be [num_tokens, k]");
  Tensor out = with_huge_pages(allocate(y, {inverse.numel() / k, y.size(1)}));
  switch (y.scalar_type()) {
    case ScalarType::Float: run<float>(y, inverse, gates, k, out); break;
    case ScalarType::Double: run<double>(y, inverse, gates, k, out); break;
    case ScalarType::BFloat16: run<BFloat16>(y, inverse, gates, k, out); break;
    default: GOSSAMER_CHECK(false, "combine: y must be float32, float64 or bfloat16");
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("combine", TORCH_BOX(&combine_cpu)); }

}  // namespace gossamer
