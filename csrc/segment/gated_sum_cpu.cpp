#include "segment/gated_sum_args.h"

#define GOSSAMER_KERNEL "segment/gated_sum.h"
#include "common/foreach_isa.h"

namespace gossamer {
namespace {

std::tuple<Tensor, Tensor> gated_sum_cpu(const Tensor& query, const Tensor& key, const Tensor& value,
                                         const Tensor& rowptr, const Tensor& col, double eps, const OptionalTensor&,
                                         const OptionalTensor&) {
  check_gated_sum(query, key, value, rowptr, col);
  Tensor out = torch::stable::empty_like(query), norm = like_in_sum_type(query);
  if (query.numel() == 0) return {out, norm};
  dispatch_rows(query.scalar_type(), col.scalar_type(), "gated_sum", [&](auto scalar, auto index) {
    using scalar_t = decltype(scalar);
    auto args = gated_sum_args<scalar_t, decltype(index)>(query, key, value, rowptr, col, eps);
    args.out = out.mutable_data_ptr<scalar_t>();
    args.norm = norm.mutable_data_ptr<Accumulator<scalar_t>>();
    parallel_for_rows(args.rowptr, args.num_rows, args.num_features,
                      [&](int64_t begin, int64_t end) { GOSSAMER_DISPATCH_ISA(gated_sum, args, begin, end); });
  });
  return {out, norm};
}

std::tuple<Tensor, Tensor, Tensor> gated_sum_backward_cpu(const Tensor& grad, const Tensor& out, const Tensor& norm,
                                                          const Tensor& query, const Tensor& key, const Tensor& value,
                                                          const Tensor& rowptr, const Tensor& col,
                                                          const Tensor& rowptr_t, const Tensor& col_t) {
  const auto rows = [](const auto& args) {
    parallel_for_rows(args.rowptr, args.num_rows, args.num_features,
                      [&](int64_t begin, int64_t end) { GOSSAMER_DISPATCH_ISA(gated_sum_rows, args, begin, end); });
  };
  const auto columns = [](const auto& args) {
    parallel_for_rows(args.rowptr, args.num_rows, args.num_features,
                      [&](int64_t begin, int64_t end) { GOSSAMER_DISPATCH_ISA(gated_sum_columns, args, begin, end); });
  };
  return gated_sum_backward(grad, out, norm, query, key, value, rowptr, col, rowptr_t, col_t, rows, columns);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) {
  m.impl("gated_sum", TORCH_BOX(&gated_sum_cpu));
  m.impl("gated_sum_backward", TORCH_BOX(&gated_sum_backward_cpu));
}

}  // namespace gossamer
