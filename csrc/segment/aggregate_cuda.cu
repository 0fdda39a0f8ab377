#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "common/cuda.cuh"

namespace gossamer {
namespace {

constexpr int kThreads = 256;
constexpr int kWarpsPerBlock = kThreads / 32;

template <typename scalar_t>
using Accumulator = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

// Same meaning as the CPU loop in aggregate.h. One warp owns one row at a time; its lanes own consecutive features, so
// every load of a source row is coalesced and no atomics are needed.
template <typename scalar_t, typename index_t, typename acc_t = Accumulator<scalar_t>>
__global__ void aggregate_kernel(const scalar_t* __restrict__ x, const int64_t* __restrict__ rowptr,
                                 const index_t* __restrict__ col, const acc_t* __restrict__ weight,
                                 const int64_t* __restrict__ edge_ids, const acc_t* __restrict__ row_scale,
                                 const acc_t* __restrict__ col_scale, bool self_loops, int64_t row_offset,
                                 const scalar_t* __restrict__ residual, acc_t alpha, scalar_t* __restrict__ out,
                                 int64_t num_rows, int64_t num_features) {
  const int lane = threadIdx.x % 32;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kWarpsPerBlock;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / 32; row < num_rows; row += stride) {
    const acc_t row_factor = (1 - alpha) * (row_scale ? row_scale[row] : acc_t(1));
    for (int64_t f = lane; f < num_features; f += 32) {
      acc_t sum = 0;
      for (int64_t e = rowptr[row]; e < rowptr[row + 1]; ++e) {
        const int64_t source = col[e];
        acc_t scale = weight ? weight[edge_ids ? edge_ids[e] : e] : acc_t(1);
        if (col_scale) scale *= col_scale[source];
        sum += scale * static_cast<acc_t>(x[source * num_features + f]);
      }
      if (self_loops) {
        const int64_t source = row + row_offset;
        sum += (col_scale ? col_scale[source] : acc_t(1)) * static_cast<acc_t>(x[source * num_features + f]);
      }
      const int64_t i = row * num_features + f;
      sum *= row_factor;
      if (residual) sum += alpha * static_cast<acc_t>(residual[i]);
      out[i] = static_cast<scalar_t>(sum);
    }
  }
}

template <typename scalar_t, typename index_t>
void launch(const Tensor& x, const Tensor& rowptr, const Tensor& col, const OptionalTensor& weight,
            const OptionalTensor& edge_ids, const OptionalTensor& row_scale, const OptionalTensor& col_scale,
            bool self_loops, int64_t row_offset, const OptionalTensor& residual, double alpha, Tensor& out) {
  using acc_t = Accumulator<scalar_t>;
  aggregate_kernel<scalar_t, index_t><<<num_blocks(out.size(0), kWarpsPerBlock), kThreads, 0, current_stream(x)>>>(
      x.const_data_ptr<scalar_t>(), rowptr.const_data_ptr<int64_t>(), col.const_data_ptr<index_t>(),
      data_or_null<acc_t>(weight), data_or_null<int64_t>(edge_ids), data_or_null<acc_t>(row_scale),
      data_or_null<acc_t>(col_scale), self_loops, row_offset, data_or_null<scalar_t>(residual),
      static_cast<acc_t>(alpha), out.mutable_data_ptr<scalar_t>(), out.size(0), x.size(1));
  check_launch("aggregate");
}

Tensor aggregate_cuda(const Tensor& x, const Tensor& rowptr, const Tensor& col, const OptionalTensor& weight,
                      const OptionalTensor& edge_ids, const OptionalTensor& row_scale, const OptionalTensor& col_scale,
                      bool self_loops, int64_t row_offset, const OptionalTensor& residual, double alpha,
                      const OptionalTensor&, const OptionalTensor&, const OptionalTensor&) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  GOSSAMER_CHECK_TENSOR(x, 2, "aggregate");
  GOSSAMER_CHECK_TENSOR(rowptr, 1, "aggregate");
  GOSSAMER_CHECK_TENSOR(col, 1, "aggregate");
  const bool narrow = col.scalar_type() == ScalarType::Int;
  GOSSAMER_CHECK(narrow || col.scalar_type() == ScalarType::Long, "aggregate: col must be int32 or int64");
  Tensor out = torch::stable::new_empty(x, {rowptr.size(0) - 1, x.size(1)});
  if (out.numel() == 0) return out;
  const auto dispatch = [&](auto scalar) {
    using scalar_t = decltype(scalar);
    (narrow ? launch<scalar_t, int32_t> : launch<scalar_t, int64_t>)(
        x, rowptr, col, weight, edge_ids, row_scale, col_scale, self_loops, row_offset, residual, alpha, out);
  };
  switch (x.scalar_type()) {
    case ScalarType::Float: dispatch(float{}); break;
    case ScalarType::Double: dispatch(double{}); break;
    case ScalarType::BFloat16: dispatch(BFloat16{}); break;
    case ScalarType::Half: dispatch(Half{}); break;
    default: GOSSAMER_CHECK(false, "aggregate: x must be float32, float64, bfloat16 or float16");
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CUDA, m) { m.impl("aggregate", TORCH_BOX(&aggregate_cuda)); }

}  // namespace gossamer
