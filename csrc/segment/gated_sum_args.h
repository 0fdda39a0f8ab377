// The arguments of gated_sum and gated_sum_backward, checked once for the CPU and the CUDA kernels.
#pragma once

#include <tuple>

#include "segment/rows.h"

namespace gossamer {

// With s_ij = sigmoid(query_i + key_j) over the edges j -> i:
//   norm_i = sum_j s_ij + eps,  out_i = sum_j s_ij value_j / norm_i.
// All matrices are [num_nodes, num_features]; norm is kept in the type of the sums.
template <typename scalar_t, typename index_t>
struct GatedSumArgs {
  using acc_t = Accumulator<scalar_t>;
  const int64_t* rowptr;  // of the transposed graph for the gradients of key and value, as col
  const index_t* col;
  const scalar_t* query;
  const scalar_t* key;
  const scalar_t* value;
  acc_t eps;
  scalar_t* out;  // written going forward, read going back
  acc_t* norm;
  const scalar_t* grad;
  acc_t* share;  // grad / norm
  scalar_t* grad_query;
  scalar_t* grad_key;
  scalar_t* grad_value;
  int64_t num_rows;
  int64_t num_features;
};

inline void check_gated_sum(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& rowptr,
                            const Tensor& col) {
  GOSSAMER_CHECK_TENSOR(query, 2, "gated_sum");
  GOSSAMER_CHECK_TENSOR(rowptr, 1, "gated_sum");
  GOSSAMER_CHECK_TENSOR(col, 1, "gated_sum");
  GOSSAMER_CHECK(rowptr.size(0) == query.size(0) + 1 && rowptr.scalar_type() == ScalarType::Long,
                 "gated_sum: rowptr must be int64 with one element more than query has rows");
  for (const Tensor* other : {&key, &value}) {
    GOSSAMER_CHECK(other->dim() == 2 && other->is_contiguous() && other->size(0) == query.size(0) &&
                       other->size(1) == query.size(1) && other->scalar_type() == query.scalar_type(),
                   "gated_sum: query, key and value must be alike");
  }
}

inline Tensor like_in_sum_type(const Tensor& x) {
  const bool wide = x.scalar_type() == ScalarType::Double;
  return allocate(x, {x.size(0), x.size(1)}, wide ? ScalarType::Double : ScalarType::Float);
}

template <typename scalar_t, typename index_t>
GatedSumArgs<scalar_t, index_t> gated_sum_args(const Tensor& query, const Tensor& key, const Tensor& value,
                                               const Tensor& rowptr, const Tensor& col, double eps) {
  using acc_t = Accumulator<scalar_t>;
  return {
      .rowptr = rowptr.const_data_ptr<int64_t>(),
      .col = col.const_data_ptr<index_t>(),
      .query = query.const_data_ptr<scalar_t>(),
      .key = key.const_data_ptr<scalar_t>(),
      .value = value.const_data_ptr<scalar_t>(),
      .eps = static_cast<acc_t>(eps),
      .out = nullptr,
      .norm = nullptr,
      .grad = nullptr,
      .share = nullptr,
      .grad_query = nullptr,
      .grad_key = nullptr,
      .grad_value = nullptr,
      .num_rows = query.size(0),
      .num_features = query.size(1),
  };
}

// What both backends do around two kernels: rows(args, row pointers) for the gradient of the query, columns(args, row
// pointers) for those of key and value, over the transposed graph.
template <typename Rows, typename Columns>
std::tuple<Tensor, Tensor, Tensor> gated_sum_backward(const Tensor& grad, const Tensor& out, const Tensor& norm,
                                                      const Tensor& query, const Tensor& key, const Tensor& value,
                                                      const Tensor& rowptr, const Tensor& col, const Tensor& rowptr_t,
                                                      const Tensor& col_t, const Rows& rows, const Columns& columns) {
  check_gated_sum(query, key, value, rowptr, col);
  check_gated_sum(query, grad, out, rowptr_t, col_t);
  GOSSAMER_CHECK(norm.is_contiguous() && norm.numel() == query.numel() && col_t.scalar_type() == col.scalar_type(),
                 "gated_sum_backward: norm and col_t must be those of gated_sum and its graph");
  Tensor grad_query = torch::stable::empty_like(query), grad_key = torch::stable::empty_like(query);
  Tensor grad_value = torch::stable::empty_like(query), share = like_in_sum_type(query);
  if (query.numel() == 0) return {grad_query, grad_key, grad_value};
  dispatch_rows(query.scalar_type(), col.scalar_type(), "gated_sum_backward", [&](auto scalar, auto index) {
    using scalar_t = decltype(scalar);
    using index_t = decltype(index);
    using acc_t = Accumulator<scalar_t>;
    auto args = gated_sum_args<scalar_t, index_t>(query, key, value, rowptr, col, 0);
    args.out = const_cast<scalar_t*>(out.const_data_ptr<scalar_t>());
    args.norm = const_cast<acc_t*>(norm.const_data_ptr<acc_t>());
    args.grad = grad.const_data_ptr<scalar_t>();
    args.share = share.mutable_data_ptr<acc_t>();
    args.grad_query = grad_query.mutable_data_ptr<scalar_t>();
    args.grad_key = grad_key.mutable_data_ptr<scalar_t>();
    args.grad_value = grad_value.mutable_data_ptr<scalar_t>();
    rows(args);
    args.rowptr = rowptr_t.const_data_ptr<int64_t>();
    args.col = col_t.const_data_ptr<index_t>();
    columns(args);
  });
  return {grad_query, grad_key, grad_value};
}

}  // namespace gossamer
