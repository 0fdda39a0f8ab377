#include "rewiring/drew_gcn_stack.h"

#include <tuple>

#define GOSSAMER_KERNEL "rewiring/drew_gcn_backward.h"
#include "common/foreach_isa.h"
#include "rewiring/drew_gcn_pass.h"

namespace gossamer {
namespace {

// Ends of ranges of at least kChunkRows rows that no edge of a shell leaves: what happens within one stays in the
// second-level cache. One range where the graph does not fall apart.
template <typename index_t>
Integers closed_ranges(const Tensors& rowptr, const Tensors& col, int64_t num_nodes) {
  std::vector<int32_t> open(num_nodes + 1);  // difference array: edges that cross the cut before node i
  for (size_t k = 0; k < rowptr.size(); ++k) {
    const int64_t* ptr = rowptr[k].template const_data_ptr<int64_t>();
    const index_t* ids = col[k].template const_data_ptr<index_t>();
    for (int64_t i = 0; i < num_nodes; ++i) {
      if (ptr[i] == ptr[i + 1]) continue;
      const auto [low, high] = std::minmax_element(ids + ptr[i], ids + ptr[i + 1]);
      const int64_t first = std::min<int64_t>(*low, i), last = std::max<int64_t>(*high, i);
      ++open[first + 1];
      --open[last + 1];
    }
  }
  Integers ends;
  int64_t begin = 0, crossing = 0;
  for (int64_t i = 1; i < num_nodes; ++i) {
    crossing += open[i];
    if (crossing == 0 && i - begin >= kChunkRows) {
      ends.push_back(i);
      begin = i;
    }
  }
  ends.push_back(num_nodes);
  return ends;
}

// One layer going back: everything between the gradient of its result and those of its states and parameters.
template <typename scalar_t, typename index_t>
struct LayerBackward {
  const Stack<scalar_t, index_t>& stack;
  std::vector<DrewHop<scalar_t, index_t>>& hops;
  std::vector<HopVectors<scalar_t>>& vectors;
  int64_t first;
  bool training;

  int64_t count() const { return static_cast<int64_t>(hops.size()); }

  // Gradients of gamma, beta and hop_weight out of the sums of drew_hop_sum_backward, and what drew_grad_message needs.
  void use_sums(const double* sums, const scalar_t* var, scalar_t* grad_gamma, scalar_t* grad_beta,
                scalar_t* grad_hop_weight) {
    const int64_t num_features = stack.num_features, padded = stack.padded;
    for (int64_t k = 0; k < count(); ++k) {
      const int64_t p = first + k;
      const double a = hops[k].hop_weight;
      double grad_a = 0;
      for (auto* v : {&vectors[k].c0, &vectors[k].c1, &vectors[k].c2}) v->assign(padded, 0);
      for (int64_t f = 0; f < num_features; ++f) {
        const int64_t i = p * num_features + f;
        const double deviation = stack.deviation(var, p, f);
        const double sum = sums[2 * k * padded + f], product = sums[(2 * k + 1) * padded + f] / deviation;
        grad_gamma[i] = static_cast<scalar_t>(a * product);
        grad_beta[i] = static_cast<scalar_t>(a * sum);
        grad_a += stack.gamma[i] * product + stack.beta[i] * sum;
        const double c0 = a * stack.gamma[i] / deviation;
        vectors[k].c0[f] = static_cast<scalar_t>(c0);
        if (!training) continue;
        vectors[k].c1[f] = static_cast<scalar_t>(-c0 * product / deviation / stack.num_nodes);
        vectors[k].c2[f] = static_cast<scalar_t>(-c0 * sum / stack.num_nodes);
      }
      grad_hop_weight[p] = static_cast<scalar_t>(grad_a);
      hops[k].c0 = vectors[k].c0.data();
      hops[k].c1 = vectors[k].c1.data();
      hops[k].c2 = vectors[k].c2.data();
    }
  }

  // grad_weight [parts, count, num_features, padded], one part per range or chunk.
  void gather(const Integers& ends, const scalar_t* behind, scalar_t* grad_message, scalar_t* grad_weight) const {
    const int64_t num_features = stack.num_features, padded = stack.padded;
    const auto fill = [&](int64_t k, int64_t begin, int64_t end) {
      GOSSAMER_DISPATCH_ISA(drew_grad_message, hops[k], behind, grad_message, num_features, padded, begin, end);
    };
    const auto pull = [&](int64_t k, int64_t part, int64_t begin, int64_t end) {
      scalar_t* target = grad_weight + (part * count() + k) * num_features * padded;
      GOSSAMER_DISPATCH_ISA(drew_gather_backward, hops[k], grad_message, target, num_features, padded, begin, end);
    };
    if (ends.size() > 1) {
      torch::stable::parallel_for(0, static_cast<int64_t>(ends.size()), 1, [&](int64_t begin, int64_t end) {
        for (int64_t r = begin; r < end; ++r) {
          const int64_t from = r ? ends[r - 1] : 0;
          for (int64_t k = 0; k < count(); ++k) {
            fill(k, from, ends[r]);
            pull(k, r, from, ends[r]);
          }
        }
      });
      return;
    }
    for (int64_t k = 0; k < count(); ++k) {
      for_chunks(stack.num_nodes, [&](int64_t, int64_t begin, int64_t end) { fill(k, begin, end); });
      for_chunks(stack.num_nodes, [&](int64_t chunk, int64_t begin, int64_t end) { pull(k, chunk, begin, end); });
    }
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> drew_gcn_backward_cpu(
    const Tensor& grad, const Tensor& out, const Tensor& states, const Tensor& messages, const Tensor& mean,
    const Tensor& var, const Tensor& length, Tensors rowptr, Tensors col, Tensors scale, Integers layer, Integers shell,
    Integers state, const Tensor& weight, const Tensor& gamma, const Tensor& beta, const OptionalTensor& hop_weight,
    double eps, bool training, Tensors rowptr_t, Tensors col_t) {
  GOSSAMER_CHECK_TENSOR(states, 3, "drew_gcn_backward");
  GOSSAMER_CHECK_TENSOR(grad, 2, "drew_gcn_backward");
  GOSSAMER_CHECK_TENSOR(out, 2, "drew_gcn_backward");
  const int64_t num_layers = states.size(0), num_nodes = states.size(1), num_features = states.size(2);
  const DrewPlan plan{layer, shell, state, num_layers};
  check_plan(plan, rowptr.size());
  check_shells(states, rowptr, col, scale);
  check_shells(states, rowptr_t, col_t, scale);
  check_parameters(plan, states, weight, gamma, beta, hop_weight, mean, var);
  const int64_t hops = plan.num_hops(), size = num_nodes * num_features;
  const bool kept = messages.size(0) == hops, l2_norm = length.numel() > 0;
  GOSSAMER_CHECK(grad.numel() == size && out.numel() == size && (kept || messages.numel() == 0) &&
                     messages.is_contiguous() && length.is_contiguous(),
                 "drew_gcn_backward: grad, out, messages and length must be as drew_gcn made them");
  Tensor grad_states = with_huge_pages(torch::stable::empty_like(states));
  Tensor grad_x = torch::stable::empty_like(grad);
  Tensor grad_weight = torch::stable::empty_like(weight);
  Tensor grad_gamma = torch::stable::empty_like(gamma);
  Tensor grad_beta = torch::stable::empty_like(beta);
  Tensor grad_hop_weight = torch::stable::new_empty(gamma, {hops});
  for (Tensor* tensor : {&grad_weight, &grad_gamma, &grad_beta, &grad_hop_weight}) torch::stable::zero_(*tensor);
  if (size == 0) return {grad_x, grad_weight, grad_gamma, grad_beta, grad_hop_weight};
  int64_t widest = 0;
  for (int64_t t = 0; t < num_layers; ++t) widest = std::max(widest, plan.first_hop(t + 1) - plan.first_hop(t));
  Tensor recomputed = with_huge_pages(torch::stable::new_empty(grad, {kept ? 0 : widest, num_nodes, num_features}));
  Tensor scratch = with_huge_pages(torch::stable::new_empty(grad, {2, num_nodes, num_features}));
  dispatch_drew(grad, col, [&](auto scalar, auto index) {
    using scalar_t = decltype(scalar);
    using index_t = decltype(index);
    const auto stack =
        make_stack<scalar_t, index_t>(plan, states, rowptr, col, scale, weight, gamma, beta, hop_weight, eps);
    const int64_t padded = stack.padded, chunks = num_chunks(num_nodes);
    const Integers ends = closed_ranges<index_t>(rowptr_t, col_t, num_nodes);
    const int64_t parts = ends.size() > 1 ? static_cast<int64_t>(ends.size()) : chunks;
    const scalar_t* all = states.const_data_ptr<scalar_t>();
    scalar_t* grads = grad_states.mutable_data_ptr<scalar_t>();
    scalar_t* behind = scratch.mutable_data_ptr<scalar_t>();
    std::vector<bool> written(num_layers);
    for (int64_t t = num_layers - 1; t >= 0; --t) {
      const int64_t first = plan.first_hop(t), count = plan.first_hop(t + 1) - first;
      std::vector<HopVectors<scalar_t>> vectors(count);
      std::vector<DrewHop<scalar_t, index_t>> layer_hops;
      for (int64_t k = 0; k < count; ++k) {
        scalar_t* message = kept ? const_cast<scalar_t*>(messages.const_data_ptr<scalar_t>()) + (first + k) * size
                                 : recomputed.mutable_data_ptr<scalar_t>() + k * size;
        layer_hops.push_back(stack.hop(first + k, all, message, vectors[k]));
        stack.set_norm(first + k, mean.const_data_ptr<scalar_t>(), var.const_data_ptr<scalar_t>(), layer_hops[k],
                       vectors[k]);
      }
      if (!kept) stack.messages(layer_hops.data(), count, false);
      const bool last = t + 1 == num_layers;
      const scalar_t* result = last ? out.const_data_ptr<scalar_t>() : all + (t + 1) * size;
      const scalar_t* above = last ? grad.const_data_ptr<scalar_t>() : grads + (t + 1) * size;
      const scalar_t* lengths = l2_norm ? length.const_data_ptr<scalar_t>() + t * num_nodes : nullptr;
      std::vector<double> sums(chunks * count * 2 * padded);
      for_chunks(num_nodes, [&](int64_t chunk, int64_t begin, int64_t end) {
        GOSSAMER_DISPATCH_ISA(drew_hop_sum_backward, layer_hops.data(), count, result, lengths, above, behind,
                              grads + t * size, written[t], sums.data() + chunk * count * 2 * padded, num_features,
                              padded, begin, end);
      });
      for (int64_t i = count * 2 * padded; i < static_cast<int64_t>(sums.size()); ++i) {
        sums[i % (count * 2 * padded)] += sums[i];
      }
      written[t] = true;
      for (int64_t k = 0; k < count; ++k) {
        const int64_t p = first + k, s = plan.state[p];
        layer_hops[k].rowptr = rowptr_t[plan.shell[p]].const_data_ptr<int64_t>();
        layer_hops[k].col = col_t[plan.shell[p]].const_data_ptr<index_t>();
        vectors[k].weight =
            padded_copy(stack.weight + p * num_features * num_features, num_features, num_features, padded);
        layer_hops[k].weight = vectors[k].weight.data();
        layer_hops[k].grad_state = grads + s * size;
        layer_hops[k].add = written[s];
        written[s] = true;
      }
      LayerBackward<scalar_t, index_t> backward{stack, layer_hops, vectors, first, training};
      backward.use_sums(sums.data(), var.const_data_ptr<scalar_t>(), grad_gamma.mutable_data_ptr<scalar_t>(),
                        grad_beta.mutable_data_ptr<scalar_t>(), grad_hop_weight.mutable_data_ptr<scalar_t>());
      std::vector<scalar_t> weights(parts * count * num_features * padded);
      backward.gather(ends, behind, behind + size, weights.data());
      scalar_t* target = grad_weight.mutable_data_ptr<scalar_t>() + first * num_features * num_features;
      for (int64_t part = 0; part < parts; ++part) {
        for (int64_t row = 0; row < count * num_features; ++row) {
          const scalar_t* from = weights.data() + (part * count * num_features + row) * padded;
          for (int64_t f = 0; f < num_features; ++f) target[row * num_features + f] += from[f];
        }
      }
    }
    std::copy_n(grads, size, grad_x.mutable_data_ptr<scalar_t>());
  });
  return {grad_x, grad_weight, grad_gamma, grad_beta, grad_hop_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("drew_gcn_backward", TORCH_BOX(&drew_gcn_backward_cpu)); }

}  // namespace gossamer
