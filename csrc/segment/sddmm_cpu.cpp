#include "segment/sddmm_args.h"

#define GOSSAMER_KERNEL "segment/sddmm.h"
#include "common/foreach_isa.h"

namespace gossamer {
namespace {

Tensor sddmm_cpu(const Tensor& a, const Tensor& b, const Tensor& rowptr, const Tensor& col,
                 const OptionalTensor& edge_ids, const OptionalTensor& row_scale, const OptionalTensor& col_scale,
                 double factor, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&) {
  Tensor out = sddmm_output(a, b, rowptr, col, edge_ids, row_scale, col_scale);
  if (out.numel() == 0 || a.numel() == 0) return out;
  dispatch_rows(a.scalar_type(), col.scalar_type(), "sddmm", [&](auto scalar, auto index) {
    const auto args =
        sddmm_args<decltype(scalar), decltype(index)>(a, b, rowptr, col, edge_ids, row_scale, col_scale, factor, out);
    parallel_for_rows(args.rowptr, args.num_rows, args.num_features,
                      [&](int64_t begin, int64_t end) { GOSSAMER_DISPATCH_ISA(sddmm, args, begin, end); });
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("sddmm", TORCH_BOX(&sddmm_cpu)); }

}  // namespace gossamer
