#include <tuple>
#include <vector>

#include "common/huge_pages.h"
#include "segment/extremum_args.h"

#define GOSSAMER_KERNEL "segment/extremum.h"
#include "common/foreach_isa.h"

namespace gossamer {
namespace {

std::tuple<Tensor, Tensor> extremum_cpu(const Tensor& x, const Tensor& rowptr, const Tensor& col,
                                        const OptionalTensor& weight, bool minimum, const OptionalTensor&,
                                        const OptionalTensor&, const OptionalTensor&) {
  check_extremum(x, rowptr, col, weight);
  Tensor out = with_huge_pages(allocate(x, {rowptr.size(0) - 1, x.size(1)}));
  Tensor arg = with_huge_pages(allocate(x, {rowptr.size(0) - 1, x.size(1)}, ScalarType::Int));
  if (out.numel() == 0) return {out, arg};
  dispatch_rows(x.scalar_type(), col.scalar_type(), "extremum", [&](auto scalar, auto index) {
    const auto args = extremum_args<decltype(scalar), decltype(index)>(x, rowptr, col, weight, minimum, out, arg);
    parallel_for_rows(args.rowptr, args.num_rows, args.num_features,
                      [&](int64_t begin, int64_t end) { GOSSAMER_DISPATCH_ISA(extremum, args, begin, end); });
  });
  return {out, arg};
}

Tensor extremum_backward_cpu(const Tensor& grad, const Tensor& arg, const Tensor& rowptr, const OptionalTensor& weight,
                             const Tensor& rowptr_t, const Tensor& col_t, const Tensor& edge_ids_t) {
  check_extremum_backward(grad, arg, rowptr, weight, rowptr_t, col_t, edge_ids_t);
  Tensor grad_x = with_huge_pages(allocate(grad, {rowptr_t.size(0) - 1, grad.size(1)}));
  if (grad_x.numel() == 0) return grad_x;
  dispatch_rows(grad.scalar_type(), col_t.scalar_type(), "extremum_backward", [&](auto scalar, auto index) {
    using acc_t = Accumulator<decltype(scalar)>;
    const auto args = extremum_backward_args<decltype(scalar), decltype(index)>(grad, arg, rowptr, weight, rowptr_t,
                                                                                col_t, edge_ids_t, grad_x);
    parallel_for_rows(args.rowptr_t, args.num_sources, args.num_features, [&](int64_t begin, int64_t end) {
      std::vector<acc_t> sum(args.num_features);  // of one node
      GOSSAMER_DISPATCH_ISA(extremum_backward, args, sum.data(), begin, end);
    });
  });
  return grad_x;
}

Tensor extremum_backward_weight_cpu(const Tensor& grad, const Tensor& arg, const Tensor& x, const Tensor& rowptr,
                                    const Tensor& col) {
  Tensor grad_weight = extremum_backward_weight_output(grad, arg, x, rowptr, col);
  if (grad_weight.numel() == 0) return grad_weight;
  dispatch_rows(x.scalar_type(), col.scalar_type(), "extremum_backward_weight", [&](auto scalar, auto index) {
    const auto args =
        extremum_backward_weight_args<decltype(scalar), decltype(index)>(grad, arg, x, rowptr, col, grad_weight);
    parallel_for_rows(args.rowptr, args.num_rows, args.num_features, [&](int64_t begin, int64_t end) {
      GOSSAMER_DISPATCH_ISA(extremum_backward_weight, args, begin, end);
    });
  });
  return grad_weight;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) {
  m.impl("extremum", TORCH_BOX(&extremum_cpu));
  m.impl("extremum_backward", TORCH_BOX(&extremum_backward_cpu));
  m.impl("extremum_backward_weight", TORCH_BOX(&extremum_backward_weight_cpu));
}

}  // namespace gossamer
