// The arguments of aggregate, checked once for the CPU and the CUDA kernel.
#pragma once

#include "segment/rows.h"

namespace gossamer {

// out[i] = (1 - alpha) * row_scale[i] * (sum_e weight[edge(e)] * col_scale[col[e]] * x[col[e]] + loop(i)) + alpha *
// residual[i] over edges rowptr[i] <= e < rowptr[i + 1], with edge(e) = edge_ids[e] (e where null) and loop(i) =
// col_scale[i + row_offset] * x[i + row_offset] where self_loops is set.
//   x [num_sources, num_features], rowptr [num_rows + 1], col [num_edges], out and residual [num_rows, num_features]
//   weight, row_scale, col_scale and residual may be null: 1, 1, 1 and 0.
// The rows may be a slice of a graph: rowptr then starts above 0 and row i is node i + row_offset.
template <typename scalar_t, typename index_t>
struct AggregateArgs {
  using acc_t = Accumulator<scalar_t>;
  const scalar_t* x;
  const int64_t* rowptr;
  const index_t* col;
  const acc_t* weight;
  const int64_t* edge_ids;
  const acc_t* row_scale;
  const acc_t* col_scale;
  const scalar_t* residual;
  scalar_t* out;
  acc_t alpha;
  bool self_loops;
  int64_t row_offset;
  int64_t num_rows;
  int64_t num_features;
};

inline void check_aggregate(const Tensor& x, const Tensor& rowptr, const Tensor& col, const OptionalTensor& weight,
                            const OptionalTensor& edge_ids, const OptionalTensor& row_scale,
                            const OptionalTensor& col_scale, bool self_loops, int64_t row_offset,
                            const OptionalTensor& residual) {
  GOSSAMER_CHECK_TENSOR(x, 2, "aggregate");
  GOSSAMER_CHECK_TENSOR(rowptr, 1, "aggregate");
  GOSSAMER_CHECK_TENSOR(col, 1, "aggregate");
  GOSSAMER_CHECK(rowptr.size(0) >= 1, "aggregate: rowptr must not be empty");
  const int64_t num_rows = rowptr.size(0) - 1;
  check_vector(edge_ids, col.size(0), "aggregate: edge_ids");
  check_vector(weight, edge_ids.has_value() ? 0 : col.size(0), "aggregate: weight");
  check_vector(row_scale, num_rows, "aggregate: row_scale");
  check_vector(col_scale, x.size(0), "aggregate: col_scale");
  GOSSAMER_CHECK(!self_loops || (row_offset >= 0 && row_offset + num_rows <= x.size(0)),
                 "aggregate: with self_loops, x must have a row for each of the rows from row_offset on");
  if (residual.has_value()) {
    const bool fits = residual->dim() == 2 && residual->is_contiguous() && residual->size(0) == num_rows &&
                      residual->size(1) == x.size(1);
    GOSSAMER_CHECK(fits, "aggregate: residual must be contiguous with the shape of the result");
  }
}

template <typename scalar_t, typename index_t>
AggregateArgs<scalar_t, index_t> aggregate_args(const Tensor& x, const Tensor& rowptr, const Tensor& col,
                                                const OptionalTensor& weight, const OptionalTensor& edge_ids,
                                                const OptionalTensor& row_scale, const OptionalTensor& col_scale,
                                                bool self_loops, int64_t row_offset, const OptionalTensor& residual,
                                                double alpha, Tensor& out) {
  using acc_t = Accumulator<scalar_t>;
  return {
      .x = x.const_data_ptr<scalar_t>(),
      .rowptr = rowptr.const_data_ptr<int64_t>(),
      .col = col.const_data_ptr<index_t>(),
      .weight = data_or_null<acc_t>(weight),
      .edge_ids = data_or_null<int64_t>(edge_ids),
      .row_scale = data_or_null<acc_t>(row_scale),
      .col_scale = data_or_null<acc_t>(col_scale),
      .residual = data_or_null<scalar_t>(residual),
      .out = out.mutable_data_ptr<scalar_t>(),
      .alpha = static_cast<acc_t>(alpha),
      .self_loops = self_loops,
      .row_offset = row_offset,
      .num_rows = rowptr.size(0) - 1,
      .num_features = x.size(1),
  };
}

}  // namespace gossamer
