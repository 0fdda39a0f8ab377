#include <vector>

#include "moe/expert_args.h"

#define GOSSAMER_KERNEL "moe/expert_mlp_backward_kernel.h"
#define GOSSAMER_KERNEL_BF16
#include "common/foreach_isa.h"
#include "moe/expert_tensors.h"

#include <tuple>

namespace gossamer {
namespace {

constexpr int64_t kColumnGroup = 64;  // a whole number of panels, whatever the instruction set
constexpr int64_t kRowGroup = 48;

template <typename scalar_t>
void run(const ExpertArgs<scalar_t>& args, bool weights) {
  using Scratch = std::vector<double>;  // words are at most as wide, and it is aligned for them
  const int64_t depth = std::max(args.d_model, args.d_hidden());
  const int64_t scratch_words = std::max(product_words(kPackedRows, depth), kGradientWords);
  for_column_groups(args.d_ff, kColumnGroup, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch(scratch_words);
    GOSSAMER_DISPATCH_ISA_BF16(expert_hidden_backward, args, scratch.data(), begin, end);
  });
  for_column_groups(args.d_model, kColumnGroup, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch(scratch_words);
    GOSSAMER_DISPATCH_ISA_BF16(expert_input_backward, args, scratch.data(), begin, end);
  });
  if (!weights) return;
  for_column_groups(args.d_model, kRowGroup, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch(scratch_words);
    GOSSAMER_DISPATCH_ISA_BF16(expert_output_weights_backward, args, scratch.data(), begin, end);
  });
  for_column_groups(args.d_hidden(), kRowGroup, 1, [&](int64_t begin, int64_t end) {
    Scratch scratch(scratch_words);
    GOSSAMER_DISPATCH_ISA_BF16(expert_input_weights_backward, args, scratch.data(), begin, end);
  });
}

// grad_gates[route] = sum of the parts of its position; routes that were dropped have none.
template <typename acc_t>
void add_gate_parts(const acc_t* parts, const int32_t* order, int64_t num_routes, int64_t num_panels, acc_t* out) {
  for (int64_t p = 0; p < num_routes; ++p) {
    acc_t sum = 0;
    for (int64_t i = 0; i < num_panels; ++i) sum += parts[p * num_panels + i];
    out[order[p]] = sum;
  }
}

// Gradients of x, gates (empty without gates), w_in and w_out (empty unless asked for).
std::tuple<Tensor, Tensor, Tensor, Tensor> expert_mlp_backward_cpu(const Tensor& grad, const Tensor& x,
                                                                   const Tensor& order, const Tensor& offsets,
                                                                   const OptionalTensor& gates, const Tensor& w_in,
                                                                   const Tensor& w_out, const Tensor& hidden, int64_t k,
                                                                   std::string activation, double limit, bool weights) {
  check_expert_tensors("expert_mlp_backward", x, order, offsets, w_in, w_out, k);
  GOSSAMER_CHECK_TENSOR(grad, 2, "expert_mlp_backward");
  GOSSAMER_CHECK_TENSOR(hidden, 2, "expert_mlp_backward");
  const int64_t num_routes = order.size(0), d_ff = w_out.size(2), d_hidden = w_in.size(1);
  GOSSAMER_CHECK(grad.size(0) == x.size(0) && hidden.size(0) == num_routes && hidden.size(1) == d_hidden,
                 "expert_mlp_backward: grad and hidden must be of the forward");
  Tensor sums = new_sums(x);
  const int64_t num_panels = (d_ff + 3) / 4;
  Tensor grad_x = allocate(x, {x.size(0), x.size(1)});
  Tensor grad_gates = allocate(sums, {gates.has_value() ? x.size(0) : 0, k});
  Tensor gate_parts = allocate(sums, {gates.has_value() ? num_routes : 0, num_panels});
  torch::stable::fill_(grad_gates, 0.0);
  torch::stable::fill_(gate_parts, 0.0);
  const int64_t num_experts = weights ? w_in.size(0) : 0;
  Tensor grad_w_in = with_huge_pages(allocate(w_in, {num_experts, d_hidden, x.size(1)}));
  Tensor grad_w_out = with_huge_pages(allocate(w_out, {num_experts, x.size(1), d_ff}));
  Tensor activated = with_huge_pages(allocate(x, {num_routes, d_ff}));
  Tensor grad_hidden = with_huge_pages(allocate(x, {num_routes, d_hidden}));
  const auto launch = [&](auto scalar) {
    using scalar_t = decltype(scalar);
    using acc_t = typename ExpertArgs<scalar_t>::acc_t;
    auto args = expert_args<scalar_t>(x, order, offsets, gates, w_in, w_out, k, activation, limit);
    args.grad = grad.const_data_ptr<scalar_t>();
    args.hidden = const_cast<scalar_t*>(hidden.const_data_ptr<scalar_t>());
    args.activated = activated.mutable_data_ptr<scalar_t>();
    args.grad_hidden = grad_hidden.mutable_data_ptr<scalar_t>();
    args.sums = sums.mutable_data_ptr<acc_t>();
    args.out = grad_x.mutable_data_ptr<scalar_t>();
    args.gate_parts = gates.has_value() ? gate_parts.mutable_data_ptr<acc_t>() : nullptr;
    args.num_panels = num_panels;
    args.grad_w_in = grad_w_in.mutable_data_ptr<scalar_t>();
    args.grad_w_out = grad_w_out.mutable_data_ptr<scalar_t>();
    run(args, weights);
    if (!gates.has_value()) return;
    add_gate_parts(args.gate_parts, args.order, num_routes, num_panels, grad_gates.mutable_data_ptr<acc_t>());
  };
  switch (x.scalar_type()) {
    case ScalarType::Float: launch(float{}); break;
    case ScalarType::Double: launch(double{}); break;
    case ScalarType::BFloat16: launch(BFloat16{}); break;
    default: GOSSAMER_CHECK(false, "expert_mlp_backward: x must be float32, float64 or bfloat16");
  }
  return {grad_x, grad_gates, grad_w_in, grad_w_out};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("expert_mlp_backward", TORCH_BOX(&expert_mlp_backward_cpu)); }

}  // namespace gossamer
