// What the CPU operators of the experts require of their tensors.
#pragma once

#include "common/huge_pages.h"
#include "common/tensor.h"
#include "moe/check_plan.h"
#include "moe/make_expert_args.h"

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
  Tensor sums = with_huge_pages(allocate(x, {x.size(0), x.size(1)}, type));
  return torch::stable::fill_(sums, 0.0);
}

}  // namespace gossamer
