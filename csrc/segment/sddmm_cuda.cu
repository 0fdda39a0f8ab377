#include "segment/rows.cuh"
#include "segment/sddmm_args.h"

namespace gossamer {
namespace {

// One warp owns one row and goes through its edges; its lanes share the features of one dot product.
template <typename scalar_t, typename index_t>
__global__ void sddmm_kernel(const SddmmArgs<scalar_t, index_t> args) {
  using acc_t = Accumulator<scalar_t>;
  for (int64_t row = first_row(); row < args.num_rows; row += row_stride()) {
    const acc_t factor = args.factor * (args.row_scale ? args.row_scale[row] : acc_t(1));
    const scalar_t* a = args.a + row * args.num_features;
    for (int64_t e = args.rowptr[row]; e < args.rowptr[row + 1]; ++e) {
      const int64_t source = args.col[e];
      const scalar_t* b = args.b + source * args.num_features;
      acc_t sum = 0;
      for (int64_t f = lane_id(); f < args.num_features; f += kLanes) {
        sum += static_cast<acc_t>(a[f]) * static_cast<acc_t>(b[f]);
      }
      sum = warp_sum(sum) * factor * (args.col_scale ? args.col_scale[source] : acc_t(1));
      if (lane_id() == 0) args.out[args.edge_ids ? args.edge_ids[e] : e] = sum;
    }
  }
}

Tensor sddmm_cuda(const Tensor& a, const Tensor& b, const Tensor& rowptr, const Tensor& col,
                  const OptionalTensor& edge_ids, const OptionalTensor& row_scale, const OptionalTensor& col_scale,
                  double factor, const OptionalTensor&, const OptionalTensor&, const OptionalTensor&) {
  const torch::stable::accelerator::DeviceGuard guard(a.get_device_index());
  Tensor out = sddmm_output(a, b, rowptr, col, edge_ids, row_scale, col_scale);
  if (out.numel() == 0 || a.numel() == 0) return out;
  dispatch_rows(a.scalar_type(), col.scalar_type(), "sddmm", [&](auto scalar, auto index) {
    const auto args =
        sddmm_args<decltype(scalar), decltype(index)>(a, b, rowptr, col, edge_ids, row_scale, col_scale, factor, out);
    sddmm_kernel<<<num_blocks(args.num_rows, kWarpsPerBlock), kThreads, 0, current_stream(a)>>>(args);
    check_launch("sddmm");
  });
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CUDA, m) { m.impl("sddmm", TORCH_BOX(&sddmm_cuda)); }

}  // namespace gossamer
