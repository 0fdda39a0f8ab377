// What the expert kernels of all instruction sets are called with. Rows of experts stand in the order of the route
// plan: expert e owns positions [offsets[e], offsets[e + 1]) of order, and position p belongs to token order[p] / k.
#pragma once

#include <cstdint>
#include <type_traits>

namespace gossamer {

enum class Activation { kRelu, kGelu, kSwiglu };

// Rows of an expert that are packed together (with a panel of columns they fit into the L2 cache), and the most columns
// of all panels that are packed at a time, for any instruction set.
constexpr int64_t kPackedRows = 96, kPackedColumns = 64;
constexpr int64_t kGradientRows = 512;  // rows of an expert that one pass of a weight gradient sums over
constexpr int64_t kGradientBlock = 48;  // rows of a weight gradient that are packed together

// Words that products of up to num_rows rows of an expert are packed into, and those of a weight gradient.
constexpr int64_t product_words(int64_t num_rows, int64_t depth) {
  return (depth + 24) * (kPackedColumns + (num_rows < kPackedRows ? num_rows + 6 : kPackedRows));
}
constexpr int64_t kGradientWords = kGradientRows * (kPackedColumns + kGradientBlock);

template <typename scalar_t>
struct ExpertArgs {
  using acc_t = std::conditional_t<std::is_same_v<scalar_t, double>, double, float>;

  const scalar_t* x;       // [num_tokens, d_model]
  const int32_t* order;    // [num_routes]
  const int32_t* offsets;  // [num_experts + 1]
  const acc_t* gates;      // [num_tokens, k], or null: ones
  const scalar_t* w_in;    // [num_experts, d_hidden, d_model]; d_hidden is 2 d_ff for swiglu (gates first), else d_ff
  const scalar_t* w_out;   // [num_experts, d_model, d_ff]
  scalar_t* hidden;        // [num_routes, d_hidden], before the activation; null in a forward that saves nothing
  scalar_t* activated;     // [num_routes, d_ff], after it; in backward times the gate
  acc_t* sums;             // [num_tokens, d_model], starting at zero: the output, or the gradient of x
  scalar_t* out;           // [num_tokens, d_model], sums rounded
  int64_t num_tokens;
  int64_t num_experts;
  int64_t d_model;
  int64_t d_ff;
  int32_t k;
  Activation activation;
  acc_t limit;  // of swiglu: gate rows are clamped from above, the others from both sides; infinity clamps nothing

  // Backward only.
  const scalar_t* grad;   // [num_tokens, d_model], of the output
  scalar_t* grad_hidden;  // [num_routes, d_hidden]
  acc_t* gate_parts;      // [num_routes, num_panels], parts of the gates' gradients by panel of d_ff; may be null
  int64_t num_panels;
  scalar_t* grad_w_in;
  scalar_t* grad_w_out;

  int64_t d_hidden() const { return activation == Activation::kSwiglu ? 2 * d_ff : d_ff; }
  int64_t token(int64_t position) const { return order[position] / k; }
  acc_t gate(int64_t position) const { return gates ? gates[order[position]] : acc_t(1); }
};

}  // namespace gossamer
