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

// What the backward pass writes; the first state may have no gradient.
template <typename scalar_t>
struct Gradients {
  scalar_t* x;       // null: not wanted
  scalar_t* states;  // of states 1..num_layers - 1
  scalar_t* weight;
  scalar_t* gamma;
  scalar_t* beta;
  scalar_t* hop_weight;
};

// What the forward pass left behind.
template <typename scalar_t>
struct Results {
  const scalar_t* grad;  // of out
  const scalar_t* out;
  const scalar_t* states;
  const scalar_t* messages;  // null: computed again
  const scalar_t* mean;
  const scalar_t* var;
  const scalar_t* length;  // null: rows were not normalised
  bool training;
};

// The layers going back, last one first.
template <typename scalar_t, typename index_t>
struct Backward {
  const Stack<scalar_t, index_t>& stack;
  const Results<scalar_t>& results;
  const Gradients<scalar_t>& grads;
  const Tensors& rowptr_t;
  const Tensors& col_t;
  const Integers& ends;    // of closed_ranges
  scalar_t* recomputed;    // messages of one layer
  scalar_t* behind;        // [num_nodes, num_features], gradient of the sum over hops
  scalar_t* grad_message;  // the same of one hop's messages
  std::vector<bool> written = std::vector<bool>(stack.plan.num_layers);  // states whose gradients have a first term
  std::vector<HopVectors<scalar_t>> vectors = {};
  std::vector<DrewHop<scalar_t, index_t>> hops = {};  // of the layer at hand

  int64_t count() const { return static_cast<int64_t>(hops.size()); }
  scalar_t* grad_state(int64_t s) const { return s ? grads.states + (s - 1) * stack.state_size() : grads.x; }

  void layer(int64_t t) {
    const int64_t first = stack.plan.first_hop(t);
    load_hops(first, stack.plan.first_hop(t + 1) - first);
    if (!results.messages) stack.messages(hops.data(), count(), false);
    use_sums(first, hop_sums(t));
    written[t] = true;
    turn_hops(first);
    gather(first);
  }

  void load_hops(int64_t first, int64_t num_hops) {
    const int64_t size = stack.state_size();
    vectors.assign(num_hops, {});
    hops.clear();
    for (int64_t k = 0; k < num_hops; ++k) {
      const scalar_t* kept = results.messages ? results.messages + (first + k) * size : recomputed + k * size;
      hops.push_back(stack.hop(first + k, results.states, const_cast<scalar_t*>(kept), vectors[k]));
      stack.set_norm(first + k, results.mean, results.var, hops[k], vectors[k]);
    }
  }

  // Fills `behind` and the gradient of the layer's own state; returns the sums [count, 2, padded] over all nodes.
  std::vector<double> hop_sums(int64_t t) const {
    const int64_t size = stack.state_size(), width = count() * 2 * stack.padded;
    const bool last = t + 1 == stack.plan.num_layers;
    const scalar_t* result = last ? results.out : results.states + (t + 1) * size;
    const scalar_t* above = last ? results.grad : grad_state(t + 1);
    const scalar_t* lengths = results.length ? results.length + t * stack.num_nodes : nullptr;
    std::vector<double> sums(num_chunks(stack.num_nodes) * width);
    for_chunks(stack.num_nodes, [&](int64_t chunk, int64_t begin, int64_t end) {
      GOSSAMER_DISPATCH_ISA(drew_hop_sum_backward, hops.data(), count(), result, lengths, above, behind, grad_state(t),
                            written[t], sums.data() + chunk * width, stack.num_features, stack.padded, begin, end);
    });
    for (int64_t i = width; i < static_cast<int64_t>(sums.size()); ++i) sums[i % width] += sums[i];
    return sums;
  }

  // Gradients of gamma, beta and hop_weight out of the sums of drew_hop_sum_backward, and what drew_grad_message needs.
  void use_sums(int64_t first, const std::vector<double>& sums) {
    const int64_t num_features = stack.num_features, padded = stack.padded;
    for (int64_t k = 0; k < count(); ++k) {
      const int64_t p = first + k;
      const double a = hops[k].hop_weight;
      double grad_a = 0;
      for (auto* v : {&vectors[k].c0, &vectors[k].c1, &vectors[k].c2}) v->assign(padded, 0);
      for (int64_t f = 0; f < num_features; ++f) {
        const int64_t i = p * num_features + f;
        const double deviation = stack.deviation(results.var, p, f);
        const double sum = sums[2 * k * padded + f], product = sums[(2 * k + 1) * padded + f] / deviation;
        grads.gamma[i] = static_cast<scalar_t>(a * product);
        grads.beta[i] = static_cast<scalar_t>(a * sum);
        grad_a += stack.gamma[i] * product + stack.beta[i] * sum;
        const double c0 = a * stack.gamma[i] / deviation;
        vectors[k].c0[f] = static_cast<scalar_t>(c0);
        if (!results.training) continue;
        vectors[k].c1[f] = static_cast<scalar_t>(-c0 * product / deviation / stack.num_nodes);
        vectors[k].c2[f] = static_cast<scalar_t>(-c0 * sum / stack.num_nodes);
      }
      grads.hop_weight[p] = static_cast<scalar_t>(grad_a);
      hops[k].c0 = vectors[k].c0.data();
      hops[k].c1 = vectors[k].c1.data();
      hops[k].c2 = vectors[k].c2.data();
    }
  }

  // From here on the hops walk the transposed shells, towards their states.
  void turn_hops(int64_t first) {
    const int64_t num_features = stack.num_features;
    for (int64_t k = 0; k < count(); ++k) {
      const int64_t p = first + k, s = stack.plan.state[p];
      stack.walk(hops[k], stack.plan.shell[p], rowptr_t, col_t);
      const scalar_t* weight = stack.weight + p * num_features * num_features;
      vectors[k].weight = padded_copy(weight, num_features, num_features, stack.padded);
      hops[k].weight = vectors[k].weight.data();
      hops[k].grad_state = grad_state(s);
      hops[k].add = written[s];
      written[s] = true;
    }
  }

  // Gradients of states and weights; those of the weights are summed per range or chunk first.
  void gather(int64_t first) const {
    const int64_t num_features = stack.num_features, padded = stack.padded, size = count() * num_features * padded;
    const int64_t parts = ends.size() > 1 ? static_cast<int64_t>(ends.size()) : num_chunks(stack.num_nodes);
    std::vector<scalar_t> weights(parts * size);
    const auto fill = [&](int64_t k, int64_t begin, int64_t end) {
      GOSSAMER_DISPATCH_ISA(drew_grad_message, hops[k], behind, grad_message, num_features, padded, begin, end);
    };
    const auto pull = [&](int64_t k, int64_t part, int64_t begin, int64_t end) {
      scalar_t* target = weights.data() + part * size + k * num_features * padded;
      GOSSAMER_DISPATCH_ISA(drew_gather_backward, hops[k], grad_message, target, num_features, padded, begin, end);
    };
    const int64_t num_ranges = ends.size() > 1 ? parts : 0;
    torch::stable::parallel_for(0, num_ranges, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const int64_t from = r ? ends[r - 1] : 0;
        for (int64_t k = 0; k < count(); ++k) {
          fill(k, from, ends[r]);
          pull(k, r, from, ends[r]);
        }
      }
    });
    for (int64_t k = 0; num_ranges == 0 && k < count(); ++k) {
      for_chunks(stack.num_nodes, [&](int64_t, int64_t begin, int64_t end) { fill(k, begin, end); });
      for_chunks(stack.num_nodes, [&](int64_t chunk, int64_t begin, int64_t end) { pull(k, chunk, begin, end); });
    }
    scalar_t* target = grads.weight + first * num_features * num_features;
    for (int64_t row = 0; row < parts * count() * num_features; ++row) {
      scalar_t* to = target + row % (count() * num_features) * num_features;
      for (int64_t f = 0; f < num_features; ++f) to[f] += weights[row * padded + f];
    }
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> drew_gcn_backward_cpu(
    const Tensor& grad, const Tensor& out, const Tensor& states, const Tensor& messages, const Tensor& mean,
    const Tensor& var, const Tensor& length, Tensors rowptr, Tensors col, Tensors scale, Integers layer, Integers shell,
    Integers state, const Tensor& weight, const Tensor& gamma, const Tensor& beta, const OptionalTensor& hop_weight,
    double eps, bool training, bool self_loops, bool need_grad_x, Tensors rowptr_t, Tensors col_t) {
  const DrewPlan plan{layer, shell, state, states.dim() == 3 ? states.size(0) : 0};
  check_backward(plan, grad, out, states, messages, mean, var, length, rowptr, col, scale, weight, gamma, beta,
                 hop_weight, rowptr_t, col_t);
  const int64_t num_nodes = grad.size(0), num_features = grad.size(1), hops = plan.num_hops();
  const bool kept = messages.size(0) == hops;
  Tensor grad_x = allocate(grad, {need_grad_x ? num_nodes : 0, num_features});
  Tensor grad_states = with_huge_pages(allocate(grad, {plan.num_layers - 1, num_nodes, num_features}));
  Tensor grad_weight = torch::stable::empty_like(weight);
  Tensor grad_gamma = torch::stable::empty_like(gamma);
  Tensor grad_beta = torch::stable::empty_like(beta);
  Tensor grad_hop_weight = allocate(gamma, {hops});
  for (Tensor* tensor : {&grad_weight, &grad_gamma, &grad_beta, &grad_hop_weight}) torch::stable::zero_(*tensor);
  if (grad.numel() == 0) return {grad_x, grad_weight, grad_gamma, grad_beta, grad_hop_weight};
  const int64_t again = kept ? 0 : widest_layer(plan);
  Tensor scratch = with_huge_pages(allocate(grad, {again + 2, num_nodes, num_features}));
  dispatch_drew(grad, col, [&](auto scalar, auto index) {
    using scalar_t = decltype(scalar);
    using index_t = decltype(index);
    const auto stack = make_stack<scalar_t, index_t>(plan, states, rowptr, col, scale, weight, gamma, beta, hop_weight,
                                                     eps, self_loops);
    const auto read = [](const Tensor& tensor) { return tensor.const_data_ptr<scalar_t>(); };
    const auto write = [](Tensor& tensor) { return tensor.mutable_data_ptr<scalar_t>(); };
    const Results<scalar_t> results{read(grad),
                                    read(out),
                                    read(states),
                                    kept ? read(messages) : nullptr,
                                    read(mean),
                                    read(var),
                                    length.numel() ? read(length) : nullptr,
                                    training};
    const Gradients<scalar_t> grads{need_grad_x ? write(grad_x) : nullptr,
                                    write(grad_states),
                                    write(grad_weight),
                                    write(grad_gamma),
                                    write(grad_beta),
                                    write(grad_hop_weight)};
    const Integers ends = closed_ranges<index_t>(rowptr_t, col_t, num_nodes);
    scalar_t* behind = write(scratch) + again * stack.state_size();
    Backward<scalar_t, index_t> backward{
        stack, results, grads, rowptr_t, col_t, ends, write(scratch), behind, behind + stack.state_size()};
    for (int64_t t = plan.num_layers - 1; t >= 0; --t) backward.layer(t);
  });
  return {grad_x, grad_weight, grad_gamma, grad_beta, grad_hop_weight};
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(gossamer, CPU, m) { m.impl("drew_gcn_backward", TORCH_BOX(&drew_gcn_backward_cpu)); }

}  // namespace gossamer
