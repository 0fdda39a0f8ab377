// What every CPU operator needs of torch: stable tensors, checks, and the thread pool.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <array>
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

// An uninitialised contiguous tensor on the device of another, and of its type where none is given. What
// torch::stable::new_empty does, which looks its operator up by name and boxes the arguments: 2 to 3 us a tensor, as
// long as all else that an operator does for one token.
inline Tensor allocate(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                       std::optional<ScalarType> type = std::nullopt) {
  constexpr size_t kMostDims = 4;
  STD_TORCH_CHECK(sizes.size() <= kMostDims, "allocate: at most ", kMostDims, " dimensions, got ", sizes.size());
  std::array<int64_t, kMostDims> strides{};
  int64_t stride = 1;
  for (size_t i = sizes.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= std::max<int64_t>(sizes[i], 1);
  }
  int32_t dtype, device_type, device_index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(like.get(), &dtype));
  if (type.has_value()) dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(*type));
  AtenTensorHandle result;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), dtype, device_type, device_index, &result));
  return Tensor(result);
}

}  // namespace gossamer

// Contract of an operator; Python has said it in the user's words before.
#define GOSSAMER_CHECK(CONDITION, ...) STD_TORCH_CHECK(CONDITION, __VA_ARGS__)

#define GOSSAMER_CHECK_TENSOR(TENSOR, DIM, FUNCTION)                                                          \
  STD_TORCH_CHECK((TENSOR).dim() == (DIM) && (TENSOR).is_contiguous(),                                        \
                  FUNCTION ": " #TENSOR " must be contiguous with " #DIM " dimensions, got ", (TENSOR).dim(), \
                  " dimensions")
