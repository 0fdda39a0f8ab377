// Forward loops of drew_gcn over rows [begin, end).
#include "rewiring/drew_gcn_block.h"

// out[i] = normalize(x[i] + sum over hops of hop_weight * relu(norm(message[i]))); length[i] is what it was divided by,
// null for no division.
template <typename scalar_t, typename index_t>
void drew_hop_sum(const DrewHop<scalar_t, index_t>* hops, int64_t num_hops, const scalar_t* x, scalar_t* out,
                  scalar_t* length, int64_t num_features, int64_t padded, int64_t begin, int64_t end) {
  using S = Simd<scalar_t>;
  using Vector = typename S::Vector;
  std::vector<scalar_t> buffer(padded);
  for (int64_t row = begin; row < end; ++row) {
    Vector squares = {};
    for (int64_t f = 0; f < padded; f += S::kLanes) {
      Vector sum = {};
      for (int64_t k = 0; k < num_hops; ++k) {
        const Vector y = normed(hops[k], load_row(hops[k].message + row * num_features, f, num_features), f);
        sum += hops[k].hop_weight * (y < 0 ? Vector{} : y);  // NaN stays NaN
      }
      sum += load_row(x + row * num_features, f, num_features);
      squares += sum * sum;
      S::store(buffer.data() + f, sum);
    }
    scalar_t divisor = 1;
    if (length) {
      divisor = std::max(std::sqrt(sum_lanes<scalar_t>(squares)), static_cast<scalar_t>(1e-12));
      length[row] = divisor;
    }
    for (int64_t f = 0; f < padded; f += S::kLanes) {
      store_row(out + row * num_features, f, num_features, S::load(buffer.data() + f) / divisor);
    }
  }
}
