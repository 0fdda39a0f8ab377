// The border between tensors and ExpertArgs.
#pragma once

#include <string>

#include "common/huge_pages.h"
#include "common/tensor.h"
#include "moe/check_plan.h"
#include "moe/expert_args.h"

namespace gossamer {

inline void check_expert_tensors(const char* function, const Tensor& x, const Tensor& order, const Tensor& offsets,
                                 const Tensor& w_in, const Tensor& w_out, int64_t k) {
  const bool contiguous = x.is_contiguous() && w_in.is_contiguous() && w_out.is_contiguous();
  GOSSAMER_CHECK(contiguous && x.dim() == 2 && w_in.dim() == 3 && w_out.dim() == 3 && k >= 1, function,
                 ": x, w_in and w_out must be contiguous with 2, 3 and 3 dimensions");
  GOSSAMER_CHECK(w_in.scalar_type() == x.scalar_type() && w_out.scalar_type() == x.scalar_type(), function,
                 ": w_in and w_out must have the type of x");
  const int64_t num_experts = w_in.size(0), d_model = x.size(1);
  GOSSAMER_CHECK(w_in.size(2) == d_model && w_out.size(0) == num_experts && w_out.size(1) == d_model, function,
                 ": w_in and w_out must be of num_experts experts of width d_model");
  const int32_t* bounds = checked_indices(offsets, 0, order.size(0) + 1, "expert_mlp: plan must have valid offsets");
  GOSSAMER_CHECK(offsets.size(0) == num_experts + 1, function, ": plan must be of num_experts experts");
  for (int64_t e = 0; e < num_experts; ++e) {
    GOSSAMER_CHECK(bounds[e] <= bounds[e + 1], function, ": plan must have ascending offsets");
  }
  checked_indices(order, 0, x.size(0) * k, "expert_mlp: plan must be of this x");
}

inline Activation activation_named(const std::string& name) {
  if (name == "relu") return Activation::kRelu;
  if (name == "gelu") return Activation::kGelu;
  GOSSAMER_CHECK(name == "swiglu", "expert_mlp: activation must be relu, gelu or swiglu, got ", name);
  return Activation::kSwiglu;
}

template <typename scalar_t>
ExpertArgs<scalar_t> expert_args(const Tensor& x, const Tensor& order, const Tensor& offsets,
                                 const OptionalTensor& gates, const Tensor& w_in, const Tensor& w_out, int64_t k,
                                 const std::string& activation, double limit) {
  ExpertArgs<scalar_t> args{};
  args.x = x.const_data_ptr<scalar_t>();
  args.order = order.const_data_ptr<int32_t>();
  args.offsets = offsets.const_data_ptr<int32_t>();
  args.gates = data_or_null<typename ExpertArgs<scalar_t>::acc_t>(gates);
  args.w_in = w_in.const_data_ptr<scalar_t>();
  args.w_out = w_out.const_data_ptr<scalar_t>();
  args.num_tokens = x.size(0);
  args.num_experts = w_in.size(0);
  args.d_model = x.size(1);
  args.d_ff = w_out.size(2);
  args.k = static_cast<int32_t>(k);
  args.activation = activation_named(activation);
  args.limit = static_cast<typename ExpertArgs<scalar_t>::acc_t>(limit);
  GOSSAMER_CHECK(args.d_hidden() == w_in.size(1), "expert_mlp: w_in must be [E, 2 f, d] for swiglu, else [E, f, d]");
  GOSSAMER_CHECK(!gates.has_value() || gates->numel() == x.size(0) * k, "expert_mlp: gates must be [num_tokens, k]");
  return args;
}

// Calls pass(begin, end) on ranges of columns, in parallel, whole groups of columns together.
template <typename Pass>
void for_column_groups(int64_t num_columns, int64_t group, int64_t grain, const Pass& pass) {
  torch::stable::parallel_for(0, (num_columns + group - 1) / group, grain, [&](int64_t begin, int64_t end) {
    pass(begin * group, std::min(end * group, num_columns));
  });
}

inline int64_t largest_count(const int32_t* offsets, int64_t num_experts) {
  int64_t largest = 0;
  for (int64_t e = 0; e < num_experts; ++e) largest = std::max<int64_t>(largest, offsets[e + 1] - offsets[e]);
  return largest;
}

// Sums over experts are kept in float32, or float64 for float64.
inline Tensor new_sums(const Tensor& x) {
  const ScalarType type = x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  Tensor sums = with_huge_pages(torch::stable::new_empty(x, {x.size(0), x.size(1)}, type));
  return torch::stable::fill_(sums, 0.0);
}

}  // namespace gossamer
