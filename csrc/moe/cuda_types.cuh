// What the CUDA kernels of this family share: the type that sums are kept in, and the choice of a scalar type.
#pragma once

#include <type_traits>

#include "common/cuda.cuh"

namespace gossamer {

template <typename scalar_t>
using Accumulator = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

template <typename Call>
void for_scalar_type(const Tensor& tensor, const char* error, const Call& call) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float: return call(float{});
    case ScalarType::Double: return call(double{});
    case ScalarType::BFloat16: return call(BFloat16{});
    case ScalarType::Half: return call(Half{});
    default: GOSSAMER_CHECK(false, error);
  }
}

}  // namespace gossamer
