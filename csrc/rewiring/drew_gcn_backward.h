// Backward loops of drew_gcn over rows [begin, end).
#include "rewiring/drew_gcn_block.h"

// The gradient before the normalisation of the rows, into `behind` and (added or written) into grad_state, if not null.
template <typename scalar_t>
inline void grad_before_normalize(const scalar_t* out, const scalar_t* length, const scalar_t* grad, scalar_t* behind,
                                  scalar_t* grad_state, bool add, int64_t num_features, int64_t padded, int64_t row) {
  using S = Simd<scalar_t>;
  using Vector = typename S::Vector;
  const int64_t base = row * num_features;
  scalar_t factor = 1, along = 0;
  if (length) {
    Vector dot = {};
    for (int64_t f = 0; f < padded; f += S::kLanes) {
      dot += load_row(out + base, f, num_features) * load_row(grad + base, f, num_features);
    }
    factor = 1 / length[row];
    along = length[row] > static_cast<scalar_t>(1e-12) ? sum_lanes<scalar_t>(dot) : 0;
  }
  for (int64_t f = 0; f < padded; f += S::kLanes) {
    Vector g = load_row(grad + base, f, num_features);
    if (length) g = factor * (g - along * load_row(out + base, f, num_features));
    store_row(behind + base, f, num_features, g);
    if (!grad_state) continue;
    if (add) g += load_row(grad_state + base, f, num_features);
    store_row(grad_state + base, f, num_features, g);
  }
}

// First half of the backward pass: `behind` [num_nodes, num_features], the gradient of the sum over hops, and for every
// hop sums [2, padded] of the gradient g behind its ReLU: sum of g, and of g * (message - mean).
template <typename scalar_t, typename index_t>
void drew_hop_sum_backward(const DrewHop<scalar_t, index_t>* hops, int64_t num_hops, const scalar_t* out,
                           const scalar_t* length, const scalar_t* grad, scalar_t* behind, scalar_t* grad_state,
                           bool add, double* sums, int64_t num_features, int64_t padded, int64_t begin, int64_t end) {
  using S = Simd<scalar_t>;
  using Vector = typename S::Vector;
  for (int64_t row = begin; row < end; row += kDrewBlockRows) {
    const int64_t last = std::min(row + kDrewBlockRows, end);
    for (int64_t r = row; r < last; ++r) {
      grad_before_normalize(out, length, grad, behind, grad_state, add, num_features, padded, r);
    }
    for (int64_t k = 0; k < num_hops; ++k) {
      double* total = sums + k * 2 * padded;
      constexpr int kVectors = kPad / S::kLanes;  // side by side, as one sum alone would wait for itself
      for (int64_t f = 0; f < padded; f += kPad) {
        Vector sum[kVectors] = {}, product[kVectors] = {};
        for (int64_t r = row; r < last; ++r) {
          for (int v = 0; v < kVectors; ++v) {
            const int64_t at = f + v * S::kLanes;
            const Vector message = load_row(hops[k].message + r * num_features, at, num_features);
            const Vector g = load_row(behind + r * num_features, at, num_features);
            const Vector kept = normed(hops[k], message, at) > 0 ? g : Vector{};
            sum[v] += kept;
            product[v] += kept * (message - S::load(hops[k].mean + at));
          }
        }
        for (int64_t i = 0; i < kPad; ++i) {
          total[f + i] += sum[i / S::kLanes][i % S::kLanes];
          total[padded + f + i] += product[i / S::kLanes][i % S::kLanes];
        }
      }
    }
  }
}

// grad_message[i] = scale[i] * gradient of the message of node i: ready to be gathered.
template <typename scalar_t, typename index_t>
void drew_grad_message(const DrewHop<scalar_t, index_t>& hop, const scalar_t* behind, scalar_t* grad_message,
                       int64_t num_features, int64_t padded, int64_t begin, int64_t end) {
  using S = Simd<scalar_t>;
  using Vector = typename S::Vector;
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t f = 0; f < padded; f += S::kLanes) {
      const Vector message = load_row(hop.message + row * num_features, f, num_features);
      const Vector g = load_row(behind + row * num_features, f, num_features);
      const Vector kept = normed(hop, message, f) > 0 ? g : Vector{};
      const Vector centered = message - S::load(hop.mean + f);
      const Vector value = S::load(hop.c0 + f) * kept + S::load(hop.c1 + f) * centered + S::load(hop.c2 + f);
      store_row(grad_message + row * num_features, f, num_features, hop.scale[row] * value);
    }
  }
}

// Second half: gathers grad_message over the transposed shell, once for both gradients: grad_state (+)= gathered
// weight, and grad_weight [num_features, padded] += gathered^T state.
template <typename scalar_t, typename index_t>
void drew_gather_backward(const DrewHop<scalar_t, index_t>& hop, const scalar_t* grad_message, scalar_t* grad_weight,
                          int64_t num_features, int64_t padded, int64_t begin, int64_t end) {
  using S = Simd<scalar_t>;
  const bool whole = num_features == padded;  // then rows need no padding, and are read and written in place
  std::vector<scalar_t> buffer(3 * kDrewBlockRows * padded);
  scalar_t* gathered = buffer.data();
  scalar_t* block = gathered + kDrewBlockRows * padded;
  scalar_t* copy = block + kDrewBlockRows * padded;
  for (int64_t row = begin; row < end; row += kDrewBlockRows) {
    const int64_t rows = std::min(kDrewBlockRows, end - row);
    const scalar_t* state = whole ? hop.state + row * padded : copy;
    gather_block<true>(hop, grad_message, num_features, padded, row, row + rows, gathered);
    if (hop.grad_state) {
      scalar_t* target = whole ? hop.grad_state + row * padded : block;
      product(gathered, padded, 1, hop.weight, padded, num_features, target, padded, rows, padded, whole && hop.add);
    }
    for (int64_t r = 0; !whole && r < rows; ++r) {
      const int64_t base = (row + r) * num_features;
      for (int64_t f = 0; f < padded; f += S::kLanes) {
        S::store(copy + r * padded + f, load_row(hop.state + base, f, num_features));
        if (!hop.grad_state) continue;
        auto value = S::load(block + r * padded + f);
        if (hop.add) value += load_row(hop.grad_state + base, f, num_features);
        store_row(hop.grad_state + base, f, num_features, value);
      }
    }
    product(gathered, int64_t{1}, padded, state, padded, rows, grad_weight, padded, num_features, padded, true);
  }
}
