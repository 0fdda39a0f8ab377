// What every CPU operator needs of torch: stable tensors, checks, and the thread pool.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cstdint>
#include <optional>

namespace gossamer {

using OptionalTensor = std::optional<torch::stable::Tensor>;
using torch::headeronly::BFloat16;
using torch::headeronly::Half;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <typename scalar_t>
const scalar_t* data_or_null(const OptionalTensor& tensor) {
  return tensor.has_value() ? tensor->const_data_ptr<scalar_t>() : nullptr;
}

}  // namespace gossamer

// Contract of an operator; Python has said it in the user's words before.
#define GOSSAMER_CHECK(CONDITION, ...) STD_TORCH_CHECK(CONDITION, __VA_ARGS__)

#define GOSSAMER_CHECK_TENSOR(TENSOR, DIM, FUNCTION)                                                          \
  STD_TORCH_CHECK((TENSOR).dim() == (DIM) && (TENSOR).is_contiguous(),                                        \
                  FUNCTION ": " #TENSOR " must be contiguous with " #DIM " dimensions, got ", (TENSOR).dim(), \
                  " dimensions")
