// A plan may be made by hand: its indices are checked before anything is read through them.
#pragma once

#include "common/tensor.h"

namespace gossamer {

inline const int32_t* checked_indices(const Tensor& indices, int64_t low, int64_t high, const char* error) {
  GOSSAMER_CHECK(indices.dim() == 1 && indices.is_contiguous() && indices.scalar_type() == ScalarType::Int, error);
  const int32_t* values = indices.const_data_ptr<int32_t>();
  bool inside = true;
  for (int64_t i = 0; i < indices.size(0); ++i) inside &= values[i] >= low && values[i] < high;
  GOSSAMER_CHECK(inside, error);
  return values;
}

}  // namespace gossamer
