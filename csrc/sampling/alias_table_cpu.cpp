#include "sampling/alias_table.h"

#include "common/tensor.h"

namespace gossamer {
namespace {

constexpr int64_t kGrainRows = 1024;

Tensor alias_table_cpu(const Tensor& rowptr, const Tensor& weight) {
  GOSSAMER_CHECK_TENSOR(rowptr, 1, "alias_table");
  GOSSAMER_CHECK_TENSOR(weight, 1, "alias_table");
  Tensor alias = torch::stable::new_empty(rowptr, {weight.numel()});
  const int64_t* offsets = rowptr.const_data_ptr<int64_t>();
  const float* weights = weight.const_data_ptr<float>();
  uint64_t* out = reinterpret_cast<uint64_t*>(alias.mutable_data_ptr<int64_t>());
  torch::stable::parallel_for(0, rowptr.numel() - 1, kGrainRows, [&](int64_t begin, int64_t end) {
    sampling::alias_table(offsets, weights, out, begin, end);
  });
  return alias;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("alias_table", TORCH_BOX(&alias_table_cpu)); }

}  // namespace gossamer
