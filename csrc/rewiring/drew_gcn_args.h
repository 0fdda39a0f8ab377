// What the loops of drew_gcn know of one hop of one layer.
#pragma once

#include <cstdint>

namespace gossamer {

// message = S state weight^T, with S = D_scale (A + I) D_scale of the shell, the I where it has self loops; its share
// of the layer's sum is hop_weight * relu((message - mean) * factor + beta). Vectors of features are padded with zeros
// to whole registers.
template <typename scalar_t, typename index_t>
struct DrewHop {
  const int64_t* rowptr;   // [num_nodes + 1]; of the transposed shell in the backward pass, as col
  const index_t* col;      // [num_edges]
  const scalar_t* scale;   // [num_nodes]
  const scalar_t* state;   // [num_nodes, num_features]
  const scalar_t* weight;  // [num_features, padded]: transposed going forward, as given going back
  scalar_t* message;       // [num_nodes, num_features]
  const scalar_t* mean;    // [padded]
  const scalar_t* factor;  // [padded], gamma / standard deviation
  const scalar_t* beta;    // [padded]
  scalar_t hop_weight;
  // Backward: grad_message = c0 * (gradient behind the ReLU) + c1 * (message - mean) + c2.
  const scalar_t* c0;    // [padded]
  const scalar_t* c1;    // [padded]
  const scalar_t* c2;    // [padded]
  scalar_t* grad_state;  // [num_nodes, num_features], null where not wanted
  bool add;              // to grad_state, or write it
  bool self_loops;
};

constexpr int64_t kPad = 16;            // elements: a whole number of registers of every instruction set
constexpr int64_t kDrewBlockRows = 48;  // rows of a hop that stay in the first-level cache with the weight

}  // namespace gossamer
