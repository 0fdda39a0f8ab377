#include <memory>
#include <vector>

#include "moe/expert_args.h"

#define GOSSAMER_KERNEL "moe/expert_mlp_kernel.h"
#define GOSSAMER_KERNEL_BF16
#include "common/foreach_isa.h"
#include "common/huge_pages.h"
#include "moe/expert_tensors.h"

#include <tuple>

namespace gossamer {
namespace {

constexpr int64_t kColumnGroup = 16, kGrain = 4;

template <typename scalar_t>
void run(const ExpertArgs<scalar_t>& args) {
  const int64_t most_rows = largest_count(args.offsets, args.num_experts);
  const int64_t words = product_words(most_rows, std::max(args.d_model, args.d_ff));
  for_column_groups(args.d_ff, kColumnGroup, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<const scalar_t*> rows(most_rows);
    const auto scratch = std::make_unique_for_overwrite<double[]>(words);  // at least as wide as a word
    GOSSAMER_DISPATCH_ISA_BF16(expert_hidden, args, rows.data(), scratch.get(), begin, end);
  });
  for_column_groups(args.d_model, kColumnGroup, kGrain, [&](int64_t begin, int64_t end) {
    std::vector<const scalar_t*> rows(most_rows);
    const auto scratch = std::make_unique_for_overwrite<double[]>(words);
    GOSSAMER_DISPATCH_ISA_BF16(expert_output, args, rows.data(), scratch.get(), begin, end);
  });
}

std::tuple<Tensor, Tensor> expert_mlp_cpu(const Tensor& x, const Tensor& order, const Tensor& offsets,
                                          const OptionalTensor& gates, const Tensor& w_in, const Tensor& w_out,
                                          int64_t k, std::string activation, double limit, bool save_hidden) {
  check_expert_tensors("expert_mlp", x, order, offsets, w_in, w_out, k);
  const int64_t num_routes = order.size(0), d_hidden = w_in.size(1);
  Tensor out = allocate(x, {x.size(0), x.size(1)});
  Tensor hidden = with_huge_pages(allocate(x, {save_hidden ? num_routes : 0, d_hidden}));
  const auto launch = [&](auto scalar) {
    using scalar_t = decltype(scalar);
    Tensor activated = with_huge_pages(allocate(x, {num_routes, w_out.size(2)}));
    Tensor sums = new_sums(x);
    auto args = expert_args<scalar_t>(x, order, offsets, gates, w_in, w_out, k, activation, limit);
    args.hidden = save_hidden ? hidden.mutable_data_ptr<scalar_t>() : nullptr;
    args.activated = activated.mutable_data_ptr<scalar_t>();
    args.sums = sums.mutable_data_ptr<typename ExpertArgs<scalar_t>::acc_t>();
    args.out = out.mutable_data_ptr<scalar_t>();
    run(args);
  };
  switch (x.scalar_type()) {
    case ScalarType::Float: launch(float{}); break;
    case ScalarType::Double: launch(double{}); break;
    case ScalarType::BFloat16: launch(BFloat16{}); break;
    default: GOSSAMER_CHECK(false, "expert_mlp: x must be float32, float64 or bfloat16");
  }
  return {out, hidden};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("expert_mlp", TORCH_BOX(&expert_mlp_cpu)); }

}  // namespace gossamer
