// What the glue of every operator over CSR rows shares: types and the split of the rows over threads.
#pragma once

#include <type_traits>

#include "common/tensor.h"

namespace gossamer {

// The type that sums of scalar_t, edge weights and scales are kept in.
template <typename scalar_t>
using Accumulator = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

// Calls function(scalar) with a value of the floating point type.
template <typename Function>
void dispatch_floating(ScalarType type, const char* name, const Function& function) {
  switch (type) {
    case ScalarType::Float: return function(float{});
    case ScalarType::Double: return function(double{});
    case ScalarType::BFloat16: return function(BFloat16{});
    case ScalarType::Half: return function(Half{});
    default: GOSSAMER_CHECK(false, name, ": x must be float32, float64, bfloat16 or float16");
  }
}

// Calls function(index) with a value of the integer type of node ids.
template <typename Function>
void dispatch_index(ScalarType type, const char* name, const Function& function) {
  switch (type) {
    case ScalarType::Int: return function(int32_t{});
    case ScalarType::Long: return function(int64_t{});
    default: GOSSAMER_CHECK(false, name, ": col must be int32 or int64");
  }
}

// Calls function(scalar, index): both at once.
template <typename Function>
void dispatch_rows(ScalarType scalar_type, ScalarType index_type, const char* name, const Function& function) {
  dispatch_floating(scalar_type, name, [&](auto scalar) {
    dispatch_index(index_type, name, [&](auto index) { function(scalar, index); });
  });
}

inline void check_vector(const OptionalTensor& tensor, int64_t size, const char* name) {
  if (!tensor.has_value()) return;
  GOSSAMER_CHECK(tensor->dim() == 1 && tensor->is_contiguous() && tensor->size(0) >= size, name,
                 " must be contiguous with 1 dimension of at least ", size, " elements");
}

// Calls function(begin, end) for ranges of rows with about equal work: a row costs its edges plus one, so a hub weighs
// what it costs. A row is never split, so the result does not depend on the number of threads.
template <typename Function>
void parallel_for_rows(const int64_t* rowptr, int64_t num_rows, int64_t num_features, const Function& function) {
  constexpr int64_t kGrainElements = 1 << 18;  // products per task: below, a thread costs more than it saves
  const auto work_before = [&](int64_t row) { return rowptr[row] - rowptr[0] + row; };
  const auto first_row = [&](int64_t work) {  // the first row with work_before(row) >= work
    int64_t low = 0, high = num_rows;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (work_before(middle) < work) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    return low;
  };
  const int64_t grain = std::max<int64_t>(kGrainElements / std::max<int64_t>(num_features, 1), 64);
  torch::stable::parallel_for(0, work_before(num_rows), grain,
                              [&](int64_t begin, int64_t end) { function(first_row(begin), first_row(end)); });
}

}  // namespace gossamer
