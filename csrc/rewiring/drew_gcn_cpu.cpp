#include "rewiring/drew_gcn_stack.h"

#include <tuple>

#define GOSSAMER_KERNEL "rewiring/drew_gcn.h"
#include "common/foreach_isa.h"
#include "rewiring/drew_gcn_pass.h"

namespace gossamer {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> drew_gcn_cpu(
    const Tensor& x, Tensors rowptr, Tensors col, Tensors scale, Integers layer, Integers shell, Integers state,
    int64_t num_layers, const Tensor& weight, const Tensor& gamma, const Tensor& beta, const OptionalTensor& hop_weight,
    const OptionalTensor& mean, const OptionalTensor& var, double eps, bool l2_norm, bool self_loops,
    bool keep_messages, Tensors, Tensors) {
  const DrewPlan plan{layer, shell, state, num_layers};
  GOSSAMER_CHECK_TENSOR(x, 2, "drew_gcn");
  check_plan(plan, rowptr.size());
  check_shells(x, rowptr, col, scale);
  check_parameters(plan, x, weight, gamma, beta, hop_weight, mean, var);
  const int64_t num_nodes = x.size(0), num_features = x.size(1), hops = plan.num_hops();
  Tensor out = torch::stable::empty_like(x);
  Tensor states = with_huge_pages(allocate(x, {num_layers, num_nodes, num_features}));
  Tensor messages = with_huge_pages(allocate(x, {keep_messages ? hops : 0, num_nodes, num_features}));
  Tensor out_mean = allocate(x, {hops, num_features});
  Tensor out_var = allocate(x, {hops, num_features});
  Tensor length = allocate(x, {l2_norm ? num_layers : 0, num_nodes});
  if (x.numel() == 0) return {out, states, messages, out_mean, out_var, length};
  Tensor scratch = with_huge_pages(allocate(x, {keep_messages ? 0 : widest_layer(plan), num_nodes, num_features}));
  dispatch_drew(x, col, [&](auto scalar, auto index) {
    using scalar_t = decltype(scalar);
    using index_t = decltype(index);
    const auto stack =
        make_stack<scalar_t, index_t>(plan, x, rowptr, col, scale, weight, gamma, beta, hop_weight, eps, self_loops);
    const int64_t size = stack.state_size(), padded = stack.padded;
    scalar_t* all = states.mutable_data_ptr<scalar_t>();
    scalar_t* kept = keep_messages ? messages.mutable_data_ptr<scalar_t>() : scratch.mutable_data_ptr<scalar_t>();
    scalar_t* means = out_mean.mutable_data_ptr<scalar_t>();
    scalar_t* vars = out_var.mutable_data_ptr<scalar_t>();
    std::copy_n(x.const_data_ptr<scalar_t>(), size, all);
    if (mean) std::copy_n(mean->const_data_ptr<scalar_t>(), hops * num_features, means);
    if (var) std::copy_n(var->const_data_ptr<scalar_t>(), hops * num_features, vars);
    for (int64_t t = 0; t < num_layers; ++t) {
      const int64_t first = plan.first_hop(t), count = plan.first_hop(t + 1) - first;
      std::vector<HopVectors<scalar_t>> vectors(count);
      std::vector<DrewHop<scalar_t, index_t>> layer_hops;
      for (int64_t k = 0; k < count; ++k) {
        layer_hops.push_back(stack.hop(first + k, all, kept + (keep_messages ? first + k : k) * size, vectors[k]));
      }
      const auto moments = stack.messages(layer_hops.data(), count, !mean);
      for (int64_t k = 0; k < count; ++k) {
        for (int64_t f = 0; !mean && f < num_features; ++f) {
          means[(first + k) * num_features + f] = static_cast<scalar_t>(moments[2 * k * padded + f]);
          vars[(first + k) * num_features + f] = static_cast<scalar_t>(moments[(2 * k + 1) * padded + f] / num_nodes);
        }
        stack.set_norm(first + k, means, vars, layer_hops[k], vectors[k]);
      }
      scalar_t* next = t + 1 < num_layers ? all + (t + 1) * size : out.mutable_data_ptr<scalar_t>();
      scalar_t* lengths = l2_norm ? length.mutable_data_ptr<scalar_t>() + t * num_nodes : nullptr;
      for_chunks(num_nodes, [&](int64_t, int64_t begin, int64_t end) {
        GOSSAMER_DISPATCH_ISA(drew_hop_sum, layer_hops.data(), count, all + t * size, next, lengths, num_features,
                              padded, begin, end);
      });
    }
  });
  return {out, states, messages, out_mean, out_var, length};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("drew_gcn", TORCH_BOX(&drew_gcn_cpu)); }

}  // namespace gossamer
