#include "common/huge_pages.h"
#include "segment/aggregate_args.h"

#define GOSSAMER_KERNEL "segment/aggregate.h"
#include "common/foreach_isa.h"

namespace gossamer {
namespace {

Tensor aggregate_cpu(const Tensor& x, const Tensor& rowptr, const Tensor& col, const OptionalTensor& weight,
                     const OptionalTensor& edge_ids, const OptionalTensor& row_scale, const OptionalTensor& col_scale,
                     bool self_loops, int64_t row_offset, const OptionalTensor& residual, double alpha,
                     const OptionalTensor&, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&) {
  check_aggregate(x, rowptr, col, weight, edge_ids, row_scale, col_scale, self_loops, row_offset, residual);
  Tensor out = with_huge_pages(allocate(x, {rowptr.size(0) - 1, x.size(1)}));
  if (out.numel() == 0) return out;
  dispatch_rows(x.scalar_type(), col.scalar_type(), "aggregate", [&](auto scalar, auto index) {
    const auto args = aggregate_args<decltype(scalar), decltype(index)>(
        x, rowptr, col, weight, edge_ids, row_scale, col_scale, self_loops, row_offset, residual, alpha, out);
    parallel_for_rows(args.rowptr, args.num_rows, args.num_features,
                      [&](int64_t begin, int64_t end) { GOSSAMER_DISPATCH_ISA(aggregate, args, begin, end); });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("aggregate", TORCH_BOX(&aggregate_cpu)); }

}  // namespace gossamer
