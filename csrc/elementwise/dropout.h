// Loops over rows of dropout; which elements are dropped, and by how much the others grow, says DropoutKey.

#include "elementwise/draw_bits.h"

// One vector of features: scale * x where the bits say keep, else 0 (also for a NaN or an infinity).
template <typename S>
inline typename S::Vector keep_or_zero(const uint16_t* bits, uint32_t threshold, typename S::acc_t scale,
                                       typename S::Vector x) {
  using word_t = std::conditional_t<sizeof(typename S::acc_t) == 8, uint64_t, uint32_t>;
  using Bits [[gnu::vector_size(S::kLanes * 2)]] = uint16_t;
  using Words [[gnu::vector_size(GOSSAMER_VECTOR_BYTES)]] = word_t;
  Bits narrow;
  std::memcpy(&narrow, bits, sizeof(narrow));
  const auto keep = __builtin_convertvector(narrow, Words) >= static_cast<word_t>(threshold);
  // An AND, because a choice would become a masked load of x, which takes twice as long on some processors.
  return reinterpret_cast<typename S::Vector>(reinterpret_cast<Words>(x * scale) & reinterpret_cast<Words>(keep));
}

// out[i] = keep_or_zero(map(x[i])) for rows i in [begin, end) of x and out [num_rows, num_features].
template <typename scalar_t, typename Map>
inline void dropout_rows(const DropoutKey& key, const scalar_t* x, scalar_t* out, int64_t num_features, int64_t begin,
                         int64_t end, const Map& map) {
  using S = Simd<scalar_t>;
  const uint32_t threshold = key.threshold;
  const auto scale = static_cast<typename S::acc_t>(key.scale);
  uint16_t bits[kBlockFeatures];
  for (int64_t row = begin; row < end; ++row) {
    const Random random = key.random(row);
    for (int64_t block = 0; block < num_features; block += kBlockFeatures) {
      draw_bits(random, block, bits);
      const scalar_t* source = x + row * num_features + block;
      scalar_t* target = out + row * num_features + block;
      const int64_t size = std::min(kBlockFeatures, num_features - block);
      int64_t f = 0;
      for (; f + S::kLanes <= size; f += S::kLanes) {
        S::store(target + f, keep_or_zero<S>(bits + f, threshold, scale, map(S::load(source + f))));
      }
      if (f == size) continue;
      scalar_t tail[S::kLanes] = {};
      std::copy(source + f, source + size, tail);
      S::store(tail, keep_or_zero<S>(bits + f, threshold, scale, map(S::load(tail))));
      std::copy(tail, tail + (size - f), target + f);
    }
  }
}

template <typename scalar_t>
void node_dropout(const DropoutKey& key, const scalar_t* x, scalar_t* out, int64_t num_features, int64_t begin,
                  int64_t end) {
  using Vector = typename Simd<scalar_t>::Vector;
  dropout_rows(key, x, out, num_features, begin, end, [](Vector v) { return v; });
}

template <typename scalar_t>
void relu_dropout(const DropoutKey& key, const scalar_t* x, scalar_t* out, int64_t num_features, int64_t begin,
                  int64_t end) {
  using Vector = typename Simd<scalar_t>::Vector;
  dropout_rows(key, x, out, num_features, begin, end, [](Vector v) { return v < 0 ? Vector{} : v; });  // NaN stays NaN
}

// grad_x[i] = out[i] <= 0 ? 0 : scale * grad[i] for elements i in [begin, end), with out from relu_dropout.
template <typename scalar_t>
void relu_dropout_backward(const scalar_t* grad, const scalar_t* out, scalar_t* grad_x, double factor, int64_t begin,
                           int64_t end) {
  using S = Simd<scalar_t>;
  using Vector = typename S::Vector;
  const auto element = [scale = static_cast<typename S::acc_t>(factor)](Vector g, Vector o) {
    return o <= 0 ? Vector{} : g * scale;
  };
  int64_t i = begin;
  for (; i + S::kLanes <= end; i += S::kLanes) S::store(grad_x + i, element(S::load(grad + i), S::load(out + i)));
  if (i == end) return;
  scalar_t g[S::kLanes] = {};
  scalar_t o[S::kLanes] = {};
  std::copy(grad + i, grad + end, g);
  std::copy(out + i, out + end, o);
  S::store(g, element(S::load(g), S::load(o)));
  std::copy(g, g + (end - i), grad_x + i);
}
