// What the CPU and the CUDA operator sample_rows share of torch: the checks, the request, the empty result.
#pragma once

#include <tuple>

#include "common/tensor.h"
#include "sampling/sample_row.h"

namespace gossamer::sampling {

inline const int64_t* checked_vector(const Tensor& tensor) {
  GOSSAMER_CHECK_TENSOR(tensor, 1, "sample_rows");
  return tensor.const_data_ptr<int64_t>();
}

// The data of an optional tensor with one entry per edge.
template <typename scalar_t>
const scalar_t* edge_data(const OptionalTensor& tensor, const Tensor& col) {
  GOSSAMER_CHECK(!tensor || (tensor->is_contiguous() && tensor->numel() == col.numel()),
                 "sample_rows: weight, alias and edge_ids must have one contiguous entry per edge");
  return data_or_null<scalar_t>(tensor);
}

// Calls run(request) with the columns of the type they have.
template <typename Run>
void with_request(const Tensor& rowptr, const Tensor& col, const OptionalTensor& weight, const OptionalTensor& alias,
                  const OptionalTensor& edge_ids, double fanout, int64_t seed, int64_t stream, bool replace,
                  const Run& run) {
  GOSSAMER_CHECK_TENSOR(col, 1, "sample_rows");
  GOSSAMER_CHECK(weight.has_value() == alias.has_value(), "sample_rows: weight and alias must be given together");
  const auto with_columns = [&](const auto* columns) {
    using index_t = std::remove_cvref_t<decltype(*columns)>;
    run(RowRequest<index_t>{checked_vector(rowptr), columns, edge_data<float>(weight, col),
                            reinterpret_cast<const uint64_t*>(edge_data<int64_t>(alias, col)),
                            edge_data<int64_t>(edge_ids, col), fanout, static_cast<uint64_t>(seed),
                            static_cast<uint64_t>(stream), replace});
  };
  if (col.scalar_type() == ScalarType::Int) {
    with_columns(col.const_data_ptr<int32_t>());
  } else {
    GOSSAMER_CHECK(col.scalar_type() == ScalarType::Long, "sample_rows: col must be int32 or int64");
    with_columns(col.const_data_ptr<int64_t>());
  }
}

struct RowOutput {
  Tensor source, edge;

  RowOutput(const Tensor& targets, const Tensor& offsets, int64_t num_edges)
      : source(torch::stable::new_empty(targets, {num_edges})), edge(torch::stable::new_empty(targets, {num_edges})) {
    checked_vector(targets);
    checked_vector(offsets);
    GOSSAMER_CHECK(offsets.numel() == targets.numel() + 1,
                   "sample_rows: offsets must have one entry more than targets");
  }
};

}  // namespace gossamer::sampling
