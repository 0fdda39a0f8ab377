// The tensors of one edge type, checked, as a Relation.
#pragma once

#include <string>

#include "common/tensor.h"
#include "sampling/relation.h"

namespace gossamer::sampling {

inline Temporal temporal_of(const std::string& name) {
  if (name == "uniform") return Temporal::kUniform;
  if (name == "last") return Temporal::kLast;
  GOSSAMER_CHECK(name == "recency", "temporal must be uniform, last or recency, got ", name);
  return Temporal::kRecency;
}

inline const int64_t* checked_vector(const Tensor& tensor, const char* function) {
  GOSSAMER_CHECK(tensor.dim() == 1 && tensor.is_contiguous(), function,
                 ": vectors must be contiguous with 1 dimension, got ", tensor.dim(), " dimensions");
  return tensor.const_data_ptr<int64_t>();
}

// int64 offsets, or lines [num_lines, 32] of int16.
inline RowPointers row_pointers(const Tensor& rowptr, const char* function) {
  RowPointers rows;
  if (rowptr.scalar_type() == ScalarType::Short) {
    GOSSAMER_CHECK(rowptr.dim() == 2 && rowptr.size(1) == RowPointers::kLineWords && rowptr.is_contiguous(), function,
                   ": rowptr must be contiguous lines of 32 words");
    rows.lines = reinterpret_cast<const uint16_t*>(rowptr.const_data_ptr<int16_t>());
  } else {
    rows.plain = checked_vector(rowptr, function);
  }
  return rows;
}

template <typename scalar_t>
const scalar_t* edge_data(const Tensor& tensor, const Tensor& col, const char* function) {
  GOSSAMER_CHECK(tensor.is_contiguous() && tensor.numel() == col.numel(), function,
                 ": weights and times must have one contiguous entry per edge, got ", tensor.numel());
  return tensor.const_data_ptr<scalar_t>();
}

// A vector of int32 or int64, contiguous or not.
inline EdgeNumbers edge_numbers(const Tensor& tensor, const char* function) {
  EdgeNumbers numbers;
  GOSSAMER_CHECK(tensor.dim() == 1, function, ": columns and edge ids must be vectors");
  numbers.step = tensor.stride(0);
  if (tensor.scalar_type() == ScalarType::Int) {
    numbers.narrow = tensor.const_data_ptr<int32_t>();
  } else {
    GOSSAMER_CHECK(tensor.scalar_type() == ScalarType::Long, function, ": columns and edge ids must be int32 or int64");
    numbers.wide = tensor.const_data_ptr<int64_t>();
  }
  return numbers;
}

// From [2, num_edges], contiguous or not.
inline AliasTable alias_table_of(const Tensor& tensor, const Tensor& col, const char* function) {
  GOSSAMER_CHECK(tensor.dim() == 2 && tensor.size(0) == 2 && tensor.size(1) == col.numel(), function,
                 ": alias must be [2, num_edges]");
  const uint32_t* const first = reinterpret_cast<const uint32_t*>(tensor.const_data_ptr<int32_t>());
  return {first, first + tensor.stride(0), tensor.stride(1)};
}

// What an edge type may have beside rows and columns; empty times are none.
struct EdgeTensors {
  const Tensor *weight = nullptr, *alias = nullptr, *cumulative = nullptr, *time = nullptr, *edge_ids = nullptr;
};

inline Relation relation_of(const Tensor& rowptr, const Tensor& col, const EdgeTensors& edges, const char* function) {
  Relation relation;
  relation.rows = row_pointers(rowptr, function);
  relation.col = edge_numbers(col, function);
  if (edges.weight) relation.weight = edge_data<float>(*edges.weight, col, function);
  if (edges.alias) relation.alias = alias_table_of(*edges.alias, col, function);
  if (edges.time && edges.time->numel() > 0) {
    relation.time = edge_data<int64_t>(*edges.time, col, function);
    if (edges.cumulative) relation.cumulative = edge_data<double>(*edges.cumulative, col, function);
  }
  if (edges.edge_ids) {
    GOSSAMER_CHECK(edges.edge_ids->numel() == col.numel(), function, ": edge_ids must have one entry per edge");
    relation.edge_ids = edge_numbers(*edges.edge_ids, function);
  }
  const bool bisects = relation.weight && relation.time;
  GOSSAMER_CHECK(!relation.weight || relation.alias.first, function, ": weight and alias must be given together");
  GOSSAMER_CHECK(!bisects || relation.cumulative, function, ": weight and time must come with cumulative");
  return relation;
}

}  // namespace gossamer::sampling
