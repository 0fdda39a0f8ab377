// The arguments of sddmm, checked once for the CPU and the CUDA kernel.
#pragma once

#include "segment/rows.h"

namespace gossamer {

// What sddmm.h computes; null pointers stand for ones (scales) and for the order of the edges (edge_ids).
template <typename scalar_t, typename index_t>
struct SddmmArgs {
  using acc_t = Accumulator<scalar_t>;
  const scalar_t* a;
  const scalar_t* b;
  const int64_t* rowptr;
  const index_t* col;
  const int64_t* edge_ids;
  const acc_t* row_scale;
  const acc_t* col_scale;
  acc_t factor;
  acc_t* out;
  int64_t num_rows;
  int64_t num_features;
};

// Edges outside the given rows have the value 0.
inline Tensor sddmm_output(const Tensor& a, const Tensor& b, const Tensor& rowptr, const Tensor& col,
                           const OptionalTensor& edge_ids, const OptionalTensor& row_scale,
                           const OptionalTensor& col_scale) {
  GOSSAMER_CHECK_TENSOR(a, 2, "sddmm");
  GOSSAMER_CHECK_TENSOR(b, 2, "sddmm");
  GOSSAMER_CHECK_TENSOR(rowptr, 1, "sddmm");
  GOSSAMER_CHECK_TENSOR(col, 1, "sddmm");
  GOSSAMER_CHECK(rowptr.size(0) == a.size(0) + 1, "sddmm: rowptr must have one element more than a has rows");
  GOSSAMER_CHECK(a.size(1) == b.size(1) && a.scalar_type() == b.scalar_type(), "sddmm: a and b must be alike");
  check_vector(edge_ids, col.size(0), "sddmm: edge_ids");
  check_vector(row_scale, a.size(0), "sddmm: row_scale");
  check_vector(col_scale, b.size(0), "sddmm: col_scale");
  const bool wide = a.scalar_type() == ScalarType::Double;
  return torch::stable::new_zeros(a, {col.size(0)}, wide ? ScalarType::Double : ScalarType::Float);
}

template <typename scalar_t, typename index_t>
SddmmArgs<scalar_t, index_t> sddmm_args(const Tensor& a, const Tensor& b, const Tensor& rowptr, const Tensor& col,
                                        const OptionalTensor& edge_ids, const OptionalTensor& row_scale,
                                        const OptionalTensor& col_scale, double factor, Tensor& out) {
  using acc_t = Accumulator<scalar_t>;
  return {
      .a = a.const_data_ptr<scalar_t>(),
      .b = b.const_data_ptr<scalar_t>(),
      .rowptr = rowptr.const_data_ptr<int64_t>(),
      .col = col.const_data_ptr<index_t>(),
      .edge_ids = data_or_null<int64_t>(edge_ids),
      .row_scale = data_or_null<acc_t>(row_scale),
      .col_scale = data_or_null<acc_t>(col_scale),
      .factor = static_cast<acc_t>(factor),
      .out = out.mutable_data_ptr<acc_t>(),
      .num_rows = a.size(0),
      .num_features = a.size(1),
  };
}

}  // namespace gossamer
