#include "common/huge_pages.h"
#include "common/tensor.h"
#include "elementwise/dropout_key.h"
#include "elementwise/dropout_types.h"
#define GOSSAMER_KERNEL "elementwise/dropout.h"
#include "common/foreach_isa.h"

namespace gossamer {
namespace {

constexpr int64_t kGrainElements = 1 << 15;

// Runs loop(key, source, target, num_features, begin, end) over the rows of x.
template <typename Loop>
Tensor dropout(const Tensor& x, double p, int64_t seed, int64_t step, const OptionalTensor& node_ids, int64_t first_row,
               const Loop& loop) {
  GOSSAMER_CHECK_TENSOR(x, 2, "dropout");
  GOSSAMER_CHECK(!node_ids || (node_ids->is_contiguous() && node_ids->numel() == x.size(0)),
                 "dropout: node_ids must have one entry per row");
  const DropoutKey key{static_cast<uint64_t>(seed),
                       static_cast<uint64_t>(step),
                       data_or_null<int64_t>(node_ids),
                       first_row,
                       dropout_threshold(p),
                       dropout_scale(p)};
  Tensor out = with_huge_pages(torch::stable::empty_like(x));
  const int64_t num_features = x.size(1);
  const int64_t grain_rows = std::max<int64_t>(1, kGrainElements / std::max<int64_t>(1, num_features));
  dispatch_type(x, [&](auto scalar) {
    using scalar_t = decltype(scalar);
    const scalar_t* source = x.const_data_ptr<scalar_t>();
    scalar_t* target = out.mutable_data_ptr<scalar_t>();
    torch::stable::parallel_for(0, x.size(0), grain_rows, [&](int64_t begin, int64_t end) {
      loop(key, source, target, num_features, begin, end);
    });
  });
  return out;
}

Tensor node_dropout_cpu(const Tensor& x, double p, int64_t seed, int64_t step, const OptionalTensor& node_ids,
                        int64_t first_row) {
  return dropout(x, p, seed, step, node_ids, first_row,
                 [](auto... arguments) { GOSSAMER_DISPATCH_ISA(node_dropout, arguments...); });
}

Tensor relu_dropout_cpu(const Tensor& x, double p, int64_t seed, int64_t step, const OptionalTensor& node_ids,
                        int64_t first_row) {
  return dropout(x, p, seed, step, node_ids, first_row,
                 [](auto... arguments) { GOSSAMER_DISPATCH_ISA(relu_dropout, arguments...); });
}

Tensor relu_dropout_backward_cpu(const Tensor& grad, const Tensor& out, double p) {
  GOSSAMER_CHECK_TENSOR(grad, 2, "relu_dropout_backward");
  GOSSAMER_CHECK_TENSOR(out, 2, "relu_dropout_backward");
  GOSSAMER_CHECK(grad.scalar_type() == out.scalar_type() && grad.numel() == out.numel(),
                 "relu_dropout_backward: grad and out must have the same shape and type");
  Tensor grad_x = with_huge_pages(torch::stable::empty_like(grad));
  dispatch_type(grad, [&](auto scalar) {
    using scalar_t = decltype(scalar);
    const scalar_t* g = grad.const_data_ptr<scalar_t>();
    const scalar_t* o = out.const_data_ptr<scalar_t>();
    scalar_t* target = grad_x.mutable_data_ptr<scalar_t>();
    torch::stable::parallel_for(0, grad.numel(), kGrainElements, [&](int64_t begin, int64_t end) {
      GOSSAMER_DISPATCH_ISA(relu_dropout_backward, g, o, target, dropout_scale(p), begin, end);
    });
  });
  return grad_x;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) {
  m.impl("node_dropout", TORCH_BOX(&node_dropout_cpu));
  m.impl("relu_dropout", TORCH_BOX(&relu_dropout_cpu));
  m.impl("relu_dropout_backward", TORCH_BOX(&relu_dropout_backward_cpu));
}

}  // namespace gossamer
