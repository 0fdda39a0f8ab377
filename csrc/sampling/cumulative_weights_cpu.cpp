#include "sampling/cumulative_weights.h"

#include "common/tensor.h"

namespace gossamer {
namespace {

constexpr int64_t kGrainRows = 1024;

Tensor cumulative_weights_cpu(const Tensor& rowptr, const Tensor& weight) {
  GOSSAMER_CHECK_TENSOR(rowptr, 1, "cumulative_weights");
  GOSSAMER_CHECK_TENSOR(weight, 1, "cumulative_weights");
  Tensor cumulative = torch::stable::empty({weight.numel()}, ScalarType::Double);
  const int64_t* offsets = rowptr.const_data_ptr<int64_t>();
  const float* weights = weight.const_data_ptr<float>();
  double* out = cumulative.mutable_data_ptr<double>();
  torch::stable::parallel_for(0, rowptr.numel() - 1, kGrainRows, [&](int64_t begin, int64_t end) {
    sampling::cumulative_weights(offsets, weights, out, begin, end);
  });
  return cumulative;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("cumulative_weights", TORCH_BOX(&cumulative_weights_cpu)); }

}  // namespace gossamer
