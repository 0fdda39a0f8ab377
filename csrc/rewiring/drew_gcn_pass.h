// What both passes of drew_gcn share: rows in chunks, parameters, and the messages of a layer's hops. Included behind
// foreach_isa.h, which compiles the loops.
#pragma once

#include "common/huge_pages.h"
#include "rewiring/drew_gcn_stack.h"

namespace gossamer {

constexpr int64_t kChunkRows =
    16 * kDrewBlockRows;  // rows whose sums are kept together: the order of every sum is fixed

inline int64_t num_chunks(int64_t num_nodes) { return (num_nodes + kChunkRows - 1) / kChunkRows; }

// Calls function(chunk, begin, end) for chunks of rows, in parallel.
template <typename Function>
void for_chunks(int64_t num_nodes, const Function& function) {
  torch::stable::parallel_for(0, num_chunks(num_nodes), 1, [&](int64_t first, int64_t last) {
    for (int64_t c = first; c < last; ++c) function(c, c * kChunkRows, std::min((c + 1) * kChunkRows, num_nodes));
  });
}

// What a hop's loops read besides tensors.
template <typename scalar_t>
struct HopVectors {
  std::vector<scalar_t> weight, mean, factor, beta, c0, c1, c2;
};

// What both passes share: sizes, parameters, and the hops of the layer at hand.
template <typename scalar_t, typename index_t>
struct Stack {
  const DrewPlan& plan;
  const Tensors& rowptr;
  const Tensors& col;
  const Tensors& scale;
  const scalar_t* weight;
  const scalar_t* gamma;
  const scalar_t* beta;
  const scalar_t* hop_weight;  // null: ones
  double eps;
  bool self_loops;
  int64_t num_nodes;
  int64_t num_features;
  int64_t padded;
  std::vector<int64_t> no_edges;  // row pointers and scales of the hop without a shell
  std::vector<scalar_t> ones;

  int64_t state_size() const { return num_nodes * num_features; }

  DrewHop<scalar_t, index_t> hop(int64_t p, const scalar_t* states, scalar_t* message,
                                 HopVectors<scalar_t>& vectors) const {
    vectors.weight = padded_copy(weight + p * num_features * num_features, num_features, num_features, padded, true);
    vectors.beta = padded_copy(beta + p * num_features, 1, num_features, padded);
    DrewHop<scalar_t, index_t> made{
        .rowptr = nullptr,
        .col = nullptr,
        .scale = nullptr,
        .state = states + plan.state[p] * state_size(),
        .weight = vectors.weight.data(),
        .message = message,
        .mean = nullptr,
        .factor = nullptr,
        .beta = vectors.beta.data(),
        .hop_weight = hop_weight ? hop_weight[p] : scalar_t(1),
        .c0 = nullptr,
        .c1 = nullptr,
        .c2 = nullptr,
        .grad_state = nullptr,
        .add = false,
        .self_loops = self_loops || plan.shell[p] < 0,
    };
    walk(made, plan.shell[p], rowptr, col);
    return made;
  }

  // Sends a hop along shell k of graphs with the nodes of this stack.
  void walk(DrewHop<scalar_t, index_t>& hop, int64_t k, const Tensors& rowptr, const Tensors& col) const {
    hop.rowptr = k < 0 ? no_edges.data() : rowptr[k].template const_data_ptr<int64_t>();
    hop.col = k < 0 ? nullptr : col[k].template const_data_ptr<index_t>();
    hop.scale = k < 0 ? ones.data() : scale[k].template const_data_ptr<scalar_t>();
  }

  double deviation(const scalar_t* var, int64_t p, int64_t f) const {
    return std::sqrt(static_cast<double>(var[p * num_features + f]) + eps);
  }

  void set_norm(int64_t p, const scalar_t* mean, const scalar_t* var, DrewHop<scalar_t, index_t>& hop,
                HopVectors<scalar_t>& vectors) const {
    vectors.mean = padded_copy(mean + p * num_features, 1, num_features, padded);
    vectors.factor.assign(padded, 0);
    for (int64_t f = 0; f < num_features; ++f) {
      vectors.factor[f] = static_cast<scalar_t>(gamma[p * num_features + f] / deviation(var, p, f));
    }
    hop.mean = vectors.mean.data();
    hop.factor = vectors.factor.data();
  }

  // Messages of hops [0, count), and their moments [count, 2, padded] where wanted.
  std::vector<double> messages(const DrewHop<scalar_t, index_t>* hops, int64_t count, bool moments_wanted) const {
    const int64_t chunks = num_chunks(num_nodes), size = 2 * padded;
    std::vector<double> parts(moments_wanted ? chunks * count * size : 0);
    for_chunks(num_nodes, [&](int64_t chunk, int64_t begin, int64_t end) {
      for (int64_t k = 0; k < count; ++k) {
        double* moments = moments_wanted ? parts.data() + (chunk * count + k) * size : nullptr;
        GOSSAMER_DISPATCH_ISA(drew_messages, hops[k], num_features, padded, moments, begin, end);
      }
    });
    for (int64_t chunk = 1; moments_wanted && chunk < chunks; ++chunk) {
      const double before = static_cast<double>(chunk * kChunkRows);
      const double rows = static_cast<double>(std::min(kChunkRows, num_nodes - chunk * kChunkRows));
      for (int64_t k = 0; k < count; ++k) {
        double* total = parts.data() + k * size;
        const double* part = parts.data() + (chunk * count + k) * size;
        for (int64_t f = 0; f < padded; ++f) {
          const double delta = part[f] - total[f];
          total[f] += delta * rows / (before + rows);
          total[padded + f] += part[padded + f] + delta * delta * before * rows / (before + rows);
        }
      }
    }
    return parts;
  }
};

template <typename scalar_t, typename index_t>
Stack<scalar_t, index_t> make_stack(const DrewPlan& plan, const Tensor& x, const Tensors& rowptr, const Tensors& col,
                                    const Tensors& scale, const Tensor& weight, const Tensor& gamma, const Tensor& beta,
                                    const OptionalTensor& hop_weight, double eps, bool self_loops) {
  const int64_t num_nodes = x.size(-2), num_features = x.size(-1);
  return {plan,
          rowptr,
          col,
          scale,
          weight.const_data_ptr<scalar_t>(),
          gamma.const_data_ptr<scalar_t>(),
          beta.const_data_ptr<scalar_t>(),
          data_or_null<scalar_t>(hop_weight),
          eps,
          self_loops,
          num_nodes,
          num_features,
          (num_features + kPad - 1) / kPad * kPad,
          std::vector<int64_t>(num_nodes + 1),
          std::vector<scalar_t>(num_nodes, 1)};
}

}  // namespace gossamer
