// The arguments of drew_gcn and drew_gcn_backward, checked once, and the padded copies that their loops read.
#pragma once

#include <vector>

#include "common/tensor.h"
#include "rewiring/drew_gcn_args.h"

namespace gossamer {

using Tensors = std::vector<Tensor>;
using Integers = std::vector<int64_t>;

// Which hops a stack has: hop p belongs to layer[p] (ascending), walks shell[p] (-1: no shell, the node alone) and
// reads state[p] <= layer[p].
struct DrewPlan {
  const Integers& layer;
  const Integers& shell;
  const Integers& state;
  int64_t num_layers;

  int64_t num_hops() const { return static_cast<int64_t>(layer.size()); }
  int64_t first_hop(int64_t of_layer) const {
    return std::lower_bound(layer.begin(), layer.end(), of_layer) - layer.begin();
  }
};

inline int64_t widest_layer(const DrewPlan& plan) {
  int64_t widest = 0;
  for (int64_t t = 0; t < plan.num_layers; ++t) widest = std::max(widest, plan.first_hop(t + 1) - plan.first_hop(t));
  return widest;
}

inline void check_plan(const DrewPlan& plan, size_t num_shells) {
  const size_t hops = plan.layer.size();
  GOSSAMER_CHECK(plan.shell.size() == hops && plan.state.size() == hops,
                 "drew_gcn: layer, shell and state must be of the same length");
  GOSSAMER_CHECK(plan.num_layers >= 1, "drew_gcn: num_layers must be at least 1, got ", plan.num_layers);
  for (size_t p = 0; p < hops; ++p) {
    const bool ordered = plan.layer[p] >= (p ? plan.layer[p - 1] : 0) && plan.layer[p] < plan.num_layers;
    GOSSAMER_CHECK(ordered, "drew_gcn: layer must ascend within [0, ", plan.num_layers, ")");
    GOSSAMER_CHECK(plan.state[p] >= 0 && plan.state[p] <= plan.layer[p], "drew_gcn: state must be in [0, layer], got ",
                   plan.state[p]);
    GOSSAMER_CHECK(plan.shell[p] >= -1 && plan.shell[p] < static_cast<int64_t>(num_shells),
                   "drew_gcn: shell must be in [-1, ", num_shells, "), got ", plan.shell[p]);
  }
}

inline void check_shells(const Tensor& x, const Tensors& rowptr, const Tensors& col, const Tensors& scale) {
  GOSSAMER_CHECK(rowptr.size() == col.size() && rowptr.size() == scale.size(),
                 "drew_gcn: rowptr, col and scale must be of the same length");
  for (size_t k = 0; k < rowptr.size(); ++k) {
    GOSSAMER_CHECK(rowptr[k].dim() == 1 && rowptr[k].is_contiguous() && rowptr[k].size(0) == x.size(-2) + 1 &&
                       rowptr[k].scalar_type() == ScalarType::Long,
                   "drew_gcn: rowptr must be contiguous int64 vectors of num_nodes + 1");
    GOSSAMER_CHECK(col[k].dim() == 1 && col[k].is_contiguous() && col[k].scalar_type() == col[0].scalar_type(),
                   "drew_gcn: col must be contiguous vectors of one type");
    GOSSAMER_CHECK(scale[k].dim() == 1 && scale[k].is_contiguous() && scale[k].size(0) == x.size(-2) &&
                       scale[k].scalar_type() == x.scalar_type(),
                   "drew_gcn: scale must be contiguous vectors of num_nodes, of the type of x");
  }
}

// [num_hops, num_features] or [num_hops, num_features, num_features], contiguous, of the type of x.
inline void check_parameter(const Tensor& tensor, const Tensor& x, int64_t num_hops, int64_t dim, const char* name) {
  bool fits = tensor.dim() == dim && tensor.is_contiguous() && tensor.size(0) == num_hops &&
              tensor.scalar_type() == x.scalar_type();
  for (int64_t d = 1; fits && d < dim; ++d) fits = tensor.size(d) == x.size(-1);
  GOSSAMER_CHECK(fits, "drew_gcn: ", name, " must be contiguous, with one entry per hop, of the width and type of x");
}

inline void check_parameters(const DrewPlan& plan, const Tensor& x, const Tensor& weight, const Tensor& gamma,
                             const Tensor& beta, const OptionalTensor& hop_weight, const OptionalTensor& mean,
                             const OptionalTensor& var) {
  const int64_t hops = plan.num_hops();
  check_parameter(weight, x, hops, 3, "weight");
  check_parameter(gamma, x, hops, 2, "gamma");
  check_parameter(beta, x, hops, 2, "beta");
  if (hop_weight) check_parameter(*hop_weight, x, hops, 1, "hop_weight");
  GOSSAMER_CHECK(mean.has_value() == var.has_value(), "drew_gcn: mean and var must be given together");
  if (mean) check_parameter(*mean, x, hops, 2, "mean");
  if (var) check_parameter(*var, x, hops, 2, "var");
}

inline void check_backward(const DrewPlan& plan, const Tensor& grad, const Tensor& out, const Tensor& states,
                           const Tensor& messages, const Tensor& mean, const Tensor& var, const Tensor& length,
                           const Tensors& rowptr, const Tensors& col, const Tensors& scale, const Tensor& weight,
                           const Tensor& gamma, const Tensor& beta, const OptionalTensor& hop_weight,
                           const Tensors& rowptr_t, const Tensors& col_t) {
  GOSSAMER_CHECK_TENSOR(states, 3, "drew_gcn_backward");
  GOSSAMER_CHECK_TENSOR(grad, 2, "drew_gcn_backward");
  GOSSAMER_CHECK_TENSOR(out, 2, "drew_gcn_backward");
  check_plan(plan, rowptr.size());
  check_shells(states, rowptr, col, scale);
  check_shells(states, rowptr_t, col_t, scale);
  check_parameters(plan, states, weight, gamma, beta, hop_weight, mean, var);
  const int64_t size = states.size(1) * states.size(2);
  const bool kept =
      messages.dim() == 3 && messages.size(0) == plan.num_hops() && messages.numel() == plan.num_hops() * size;
  GOSSAMER_CHECK(grad.numel() == size && out.numel() == size && (kept || messages.numel() == 0) &&
                     messages.is_contiguous() && length.is_contiguous(),
                 "drew_gcn_backward: grad, out, messages and length must be as drew_gcn made them");
}

template <typename Function>
void dispatch_drew(const Tensor& x, const Tensors& col, const Function& function) {
  const bool is_long = !col.empty() && col[0].scalar_type() == ScalarType::Long;
  GOSSAMER_CHECK(col.empty() || is_long || col[0].scalar_type() == ScalarType::Int,
                 "drew_gcn: col must be int32 or int64");
  GOSSAMER_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double,
                 "drew_gcn: x must be float32 or float64");
  const auto with_scalar = [&](auto scalar) { is_long ? function(scalar, int64_t{}) : function(scalar, int32_t{}); };
  x.scalar_type() == ScalarType::Double ? with_scalar(double{}) : with_scalar(float{});
}

// `rows` rows of num_features elements, padded with zeros; the matrix is transposed where asked for.
template <typename scalar_t>
std::vector<scalar_t> padded_copy(const scalar_t* data, int64_t rows, int64_t num_features, int64_t padded,
                                  bool transpose = false) {
  std::vector<scalar_t> out(rows * padded);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t f = 0; f < num_features; ++f) {
      out[r * padded + f] = transpose ? data[f * num_features + r] : data[r * num_features + f];
    }
  }
  return out;
}

}  // namespace gossamer
