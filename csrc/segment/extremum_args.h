// The arguments of extremum and its two gradients, checked once for the CPU and the CUDA kernels; extremum.h says what
// they compute.
#pragma once

#include "segment/rows.h"

namespace gossamer {

template <typename scalar_t, typename index_t>
struct ExtremumArgs {
  const scalar_t* x;
  const int64_t* rowptr;
  const index_t* col;
  const Accumulator<scalar_t>* weight;
  bool minimum;
  scalar_t* out;
  int32_t* arg;
  int64_t num_rows;
  int64_t num_features;
};

template <typename scalar_t, typename index_t>
struct ExtremumBackwardArgs {
  const scalar_t* grad;
  const int32_t* arg;
  const int64_t* rowptr;
  const Accumulator<scalar_t>* weight;
  const int64_t* rowptr_t;
  const index_t* col_t;
  const int64_t* edge_ids_t;
  scalar_t* grad_x;
  int64_t num_sources;
  int64_t num_features;
};

template <typename scalar_t, typename index_t>
struct ExtremumBackwardWeightArgs {
  const scalar_t* grad;
  const int32_t* arg;
  const scalar_t* x;
  const int64_t* rowptr;
  const index_t* col;
  Accumulator<scalar_t>* grad_weight;
  int64_t num_rows;
  int64_t num_features;
};

inline void check_extremum(const Tensor& x, const Tensor& rowptr, const Tensor& col, const OptionalTensor& weight) {
  GOSSAMER_CHECK_TENSOR(x, 2, "extremum");
  GOSSAMER_CHECK_TENSOR(rowptr, 1, "extremum");
  GOSSAMER_CHECK_TENSOR(col, 1, "extremum");
  GOSSAMER_CHECK(rowptr.size(0) >= 1, "extremum: rowptr must not be empty");
  check_vector(weight, col.size(0), "extremum: weight");
}

template <typename scalar_t, typename index_t>
ExtremumArgs<scalar_t, index_t> extremum_args(const Tensor& x, const Tensor& rowptr, const Tensor& col,
                                              const OptionalTensor& weight, bool minimum, Tensor& out, Tensor& arg) {
  return {
      .x = x.const_data_ptr<scalar_t>(),
      .rowptr = rowptr.const_data_ptr<int64_t>(),
      .col = col.const_data_ptr<index_t>(),
      .weight = data_or_null<Accumulator<scalar_t>>(weight),
      .minimum = minimum,
      .out = out.mutable_data_ptr<scalar_t>(),
      .arg = arg.mutable_data_ptr<int32_t>(),
      .num_rows = rowptr.size(0) - 1,
      .num_features = x.size(1),
  };
}

inline void check_extremum_backward(const Tensor& grad, const Tensor& arg, const Tensor& rowptr,
                                    const OptionalTensor& weight, const Tensor& rowptr_t, const Tensor& col_t,
                                    const Tensor& edge_ids_t) {
  GOSSAMER_CHECK_TENSOR(grad, 2, "extremum_backward");
  GOSSAMER_CHECK_TENSOR(arg, 2, "extremum_backward");
  GOSSAMER_CHECK_TENSOR(rowptr_t, 1, "extremum_backward");
  GOSSAMER_CHECK_TENSOR(col_t, 1, "extremum_backward");
  GOSSAMER_CHECK(grad.size(0) == arg.size(0) && grad.size(1) == arg.size(1) && rowptr.size(0) == grad.size(0) + 1,
                 "extremum_backward: grad and arg must have the rows of the graph");
  GOSSAMER_CHECK(rowptr_t.size(0) >= 1, "extremum_backward: rowptr_t must not be empty");
  check_vector(weight, col_t.size(0), "extremum_backward: weight");
  check_vector(edge_ids_t, col_t.size(0), "extremum_backward: edge_ids_t");
}

template <typename scalar_t, typename index_t>
ExtremumBackwardArgs<scalar_t, index_t> extremum_backward_args(const Tensor& grad, const Tensor& arg,
                                                               const Tensor& rowptr, const OptionalTensor& weight,
                                                               const Tensor& rowptr_t, const Tensor& col_t,
                                                               const Tensor& edge_ids_t, Tensor& grad_x) {
  return {
      .grad = grad.const_data_ptr<scalar_t>(),
      .arg = arg.const_data_ptr<int32_t>(),
      .rowptr = rowptr.const_data_ptr<int64_t>(),
      .weight = data_or_null<Accumulator<scalar_t>>(weight),
      .rowptr_t = rowptr_t.const_data_ptr<int64_t>(),
      .col_t = col_t.const_data_ptr<index_t>(),
      .edge_ids_t = edge_ids_t.const_data_ptr<int64_t>(),
      .grad_x = grad_x.mutable_data_ptr<scalar_t>(),
      .num_sources = rowptr_t.size(0) - 1,
      .num_features = grad.size(1),
  };
}

// Edges outside the given rows have the gradient 0.
inline Tensor extremum_backward_weight_output(const Tensor& grad, const Tensor& arg, const Tensor& x,
                                              const Tensor& rowptr, const Tensor& col) {
  check_extremum(x, rowptr, col, std::nullopt);
  GOSSAMER_CHECK_TENSOR(grad, 2, "extremum_backward_weight");
  GOSSAMER_CHECK_TENSOR(arg, 2, "extremum_backward_weight");
  GOSSAMER_CHECK(grad.size(0) == arg.size(0) && grad.size(1) == arg.size(1) && rowptr.size(0) == grad.size(0) + 1 &&
                     grad.size(1) == x.size(1) && grad.scalar_type() == x.scalar_type(),
                 "extremum_backward_weight: grad and arg must have the rows of the graph and the features of x");
  const bool wide = x.scalar_type() == ScalarType::Double;
  return torch::stable::new_zeros(x, {col.size(0)}, wide ? ScalarType::Double : ScalarType::Float);
}

template <typename scalar_t, typename index_t>
ExtremumBackwardWeightArgs<scalar_t, index_t> extremum_backward_weight_args(const Tensor& grad, const Tensor& arg,
                                                                            const Tensor& x, const Tensor& rowptr,
                                                                            const Tensor& col, Tensor& grad_weight) {
  return {
      .grad = grad.const_data_ptr<scalar_t>(),
      .arg = arg.const_data_ptr<int32_t>(),
      .x = x.const_data_ptr<scalar_t>(),
      .rowptr = rowptr.const_data_ptr<int64_t>(),
      .col = col.const_data_ptr<index_t>(),
      .grad_weight = grad_weight.mutable_data_ptr<Accumulator<scalar_t>>(),
      .num_rows = rowptr.size(0) - 1,
      .num_features = grad.size(1),
  };
}

}  // namespace gossamer
