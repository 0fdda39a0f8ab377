// Loops of gated_sum over rows [begin, end). Going through its edges a row keeps a few registers of sums; gates are
// computed again in the backward pass, so that nothing has the size of the edges.

#include "common/exp.h"

// One register at feature f of a row that ends at num_features (zeros behind it), and back.
template <typename scalar_t>
inline typename Simd<scalar_t>::Vector load_features(const scalar_t* row, int64_t f, int64_t num_features) {
  using S = Simd<scalar_t>;
  if (f + S::kLanes <= num_features) return S::load(row + f);
  scalar_t buffer[S::kLanes] = {};
  std::copy(row + f, row + num_features, buffer);
  return S::load(buffer);
}

template <typename scalar_t>
inline void store_features(scalar_t* row, int64_t f, int64_t num_features, typename Simd<scalar_t>::Vector v) {
  using S = Simd<scalar_t>;
  if (f + S::kLanes <= num_features) return S::store(row + f, v);
  scalar_t buffer[S::kLanes];
  S::store(buffer, v);
  std::copy(buffer, buffer + (num_features - f), row + f);
}

// Calls function(row, base of the row, f) for every register of rows [begin, end).
template <typename scalar_t, typename index_t, typename Function>
inline void for_registers(const GatedSumArgs<scalar_t, index_t>& args, int64_t begin, int64_t end,
                          const Function& function) {
  for (int64_t row = begin; row < end; ++row) {
    for (int64_t f = 0; f < args.num_features; f += Simd<scalar_t>::kLanes) function(row, row * args.num_features, f);
  }
}

// Writes out and norm.
template <typename scalar_t, typename index_t>
void gated_sum(const GatedSumArgs<scalar_t, index_t>& args, int64_t begin, int64_t end) {
  using Vector = typename Simd<scalar_t>::Vector;
  const int64_t features = args.num_features;
  for_registers(args, begin, end, [&](int64_t row, int64_t base, int64_t f) {
    const Vector query = load_features(args.query + base, f, features);
    Vector sum = {}, norm = Vector{} + args.eps;
    for (int64_t e = args.rowptr[row]; e < args.rowptr[row + 1]; ++e) {
      const int64_t source = args.col[e] * features;
      const Vector gate = sigmoid_vector(query + load_features(args.key + source, f, features));
      sum += gate * load_features(args.value + source, f, features);
      norm += gate;
    }
    store_features(args.out + base, f, features, sum / norm);
    store_features(args.norm + base, f, features, norm);
  });
}

// Writes share and grad_query = share * sum_j s_ij (1 - s_ij) (value_j - out_i).
template <typename scalar_t, typename index_t>
void gated_sum_rows(const GatedSumArgs<scalar_t, index_t>& args, int64_t begin, int64_t end) {
  using Vector = typename Simd<scalar_t>::Vector;
  const int64_t features = args.num_features;
  for_registers(args, begin, end, [&](int64_t row, int64_t base, int64_t f) {
    const Vector query = load_features(args.query + base, f, features),
                 out = load_features(args.out + base, f, features);
    Vector sum = {};
    for (int64_t e = args.rowptr[row]; e < args.rowptr[row + 1]; ++e) {
      const int64_t source = args.col[e] * features;
      const Vector gate = sigmoid_vector(query + load_features(args.key + source, f, features));
      sum += gate * (1 - gate) * (load_features(args.value + source, f, features) - out);
    }
    const Vector share = load_features(args.grad + base, f, features) / load_features(args.norm + base, f, features);
    store_features(args.share + base, f, features, share);
    store_features(args.grad_query + base, f, features, share * sum);
  });
}

// Over the transposed graph, whose row j lists the receivers i: writes grad_value = sum_i share_i s_ij and
// grad_key = sum_i share_i s_ij (1 - s_ij) (value_j - out_i).
template <typename scalar_t, typename index_t>
void gated_sum_columns(const GatedSumArgs<scalar_t, index_t>& args, int64_t begin, int64_t end) {
  using Vector = typename Simd<scalar_t>::Vector;
  const int64_t features = args.num_features;
  for_registers(args, begin, end, [&](int64_t row, int64_t base, int64_t f) {
    const Vector key = load_features(args.key + base, f, features),
                 value = load_features(args.value + base, f, features);
    Vector grad_key = {}, grad_value = {};
    for (int64_t e = args.rowptr[row]; e < args.rowptr[row + 1]; ++e) {
      const int64_t target = args.col[e] * features;
      const Vector gate = sigmoid_vector(load_features(args.query + target, f, features) + key);
      const Vector part = gate * load_features(args.share + target, f, features);
      grad_value += part;
      grad_key += part * (1 - gate) * (value - load_features(args.out + target, f, features));
    }
    store_features(args.grad_key + base, f, features, grad_key);
    store_features(args.grad_value + base, f, features, grad_value);
  });
}
