// The types of elements that dropout takes.
#pragma once

#include "common/tensor.h"

namespace gossamer {

// Calls function with a value of the type of the tensor's elements.
template <typename Function>
void dispatch_type(const Tensor& x, const Function& function) {
  switch (x.scalar_type()) {
    case ScalarType::Float: return function(float{});
    case ScalarType::Double: return function(double{});
    case ScalarType::BFloat16: return function(BFloat16{});
    case ScalarType::Half: return function(Half{});
    default: GOSSAMER_CHECK(false, "dropout: x must be float32, float64, bfloat16 or float16");
  }
}

}  // namespace gossamer
