#include "sampling/alias_table.h"

#include "common/tensor.h"

namespace gossamer {
namespace {

constexpr int64_t kGrainRows = 1024;

Tensor alias_table_cpu(const Tensor& rowptr, const Tensor& weight) {
  GOSSAMER_CHECK_TENSOR(rowptr, 1, "alias_table");
  GOSSAMER_CHECK_TENSOR(weight, 1, "alias_table");
  const int64_t num_edges = weight.numel();
  Tensor alias = allocate(rowptr, {2, num_edges}, ScalarType::Int);
  const int64_t* offsets = rowptr.const_data_ptr<int64_t>();
  const float* weights = weight.const_data_ptr<float>();
  uint32_t* out = reinterpret_cast<uint32_t*>(alias.mutable_data_ptr<int32_t>());
  torch::stable::parallel_for(0, rowptr.numel() - 1, kGrainRows, [&](int64_t begin, int64_t end) {
    sampling::alias_table(offsets, weights, out, out + num_edges, begin, end);
  });
  return alias;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("alias_table", TORCH_BOX(&alias_table_cpu)); }

}  // namespace gossamer
