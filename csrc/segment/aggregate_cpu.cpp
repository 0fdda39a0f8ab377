#define GOSSAMER_KERNEL "segment/aggregate.h"
#include "common/foreach_isa.h"
#include "common/tensor.h"

namespace gossamer {
namespace {

constexpr int64_t kGrainRows = 256;

template <typename scalar_t, typename index_t>
void run(const Tensor& x, const Tensor& rowptr, const Tensor& col, const OptionalTensor& weight,
         const OptionalTensor& edge_ids, const OptionalTensor& row_scale, const OptionalTensor& col_scale,
         bool self_loops, int64_t row_offset, const OptionalTensor& residual, double alpha, Tensor& out) {
  const auto fill = [&](auto args) {
    using acc_t = decltype(args.alpha);
    args.x = x.const_data_ptr<scalar_t>();
    args.rowptr = rowptr.const_data_ptr<int64_t>();
    args.weight = data_or_null<acc_t>(weight);
    args.edge_ids = data_or_null<int64_t>(edge_ids);
    args.row_scale = data_or_null<acc_t>(row_scale);
    args.col_scale = data_or_null<acc_t>(col_scale);
    args.residual = data_or_null<scalar_t>(residual);
    args.alpha = static_cast<acc_t>(alpha);
    args.self_loops = self_loops;
    args.row_offset = row_offset;
    args.num_features = x.size(1);
    return args;
  };
  const index_t* columns = col.const_data_ptr<index_t>();
  scalar_t* result = out.mutable_data_ptr<scalar_t>();
  torch::stable::parallel_for(0, out.size(0), kGrainRows, [&](int64_t begin, int64_t end) {
    switch (current_isa()) {
#if defined(__x86_64__)
      case Isa::kAvx512Bf16:
      case Isa::kAvx512:
        return avx512::aggregate(fill(avx512::AggregateArgs<scalar_t>{}), columns, result, begin, end);
      case Isa::kAvx2:
        return avx2::aggregate(fill(avx2::AggregateArgs<scalar_t>{}), columns, result, begin, end);
#endif
      default:
        return scalar::aggregate(fill(scalar::AggregateArgs<scalar_t>{}), columns, result, begin, end);
    }
  });
}

Tensor aggregate_cpu(const Tensor& x, const Tensor& rowptr, const Tensor& col, const OptionalTensor& weight,
                     const OptionalTensor& edge_ids, const OptionalTensor& row_scale, const OptionalTensor& col_scale,
                     bool self_loops, int64_t row_offset, const OptionalTensor& residual, double alpha,
                     const OptionalTensor&, const OptionalTensor&, const OptionalTensor&) {
  GOSSAMER_CHECK_TENSOR(x, 2, "aggregate");
  GOSSAMER_CHECK_TENSOR(rowptr, 1, "aggregate");
  GOSSAMER_CHECK_TENSOR(col, 1, "aggregate");
  const bool narrow = col.scalar_type() == ScalarType::Int;
  GOSSAMER_CHECK(narrow || col.scalar_type() == ScalarType::Long, "aggregate: col must be int32 or int64");
  Tensor out = torch::stable::new_empty(x, {rowptr.size(0) - 1, x.size(1)});
  const auto dispatch = [&](auto scalar) {
    using scalar_t = decltype(scalar);
    (narrow ? run<scalar_t, int32_t> : run<scalar_t, int64_t>)(
        x, rowptr, col, weight, edge_ids, row_scale, col_scale, self_loops, row_offset, residual, alpha, out);
  };
  switch (x.scalar_type()) {
    case ScalarType::Float: dispatch(float{}); break;
    case ScalarType::Double: dispatch(double{}); break;
    case ScalarType::BFloat16: dispatch(BFloat16{}); break;
    default: GOSSAMER_CHECK(false, "aggregate: x must be float32, float64 or bfloat16");
  }
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("aggregate", TORCH_BOX(&aggregate_cpu)); }

}  // namespace gossamer
