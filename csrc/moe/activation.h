// Activations and their derivatives on vectors of float; a vector of double goes lane by lane.

#include "common/exp.h"

// The normal distribution function, with an error of 1.5e-7 (Abramowitz and Stegun 7.1.26), and its density.
inline Simd<float>::Vector normal_cdf(Simd<float>::Vector x, Simd<float>::Vector* density) {
  using Vector = Simd<float>::Vector;
  const Vector bell = exp_vector(x * x * -0.5f);
  const Vector t = 1 / (1 + 0.3275911f * 0.70710678f * (x < 0 ? -x : x));
  Vector p = t * 1.061405429f - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const Vector tail = 0.5f * p * t * bell;
  *density = bell * 0.39894228f;
  return x < 0 ? tail : 1 - tail;
}

inline Simd<double>::Vector normal_cdf(Simd<double>::Vector x, Simd<double>::Vector* density) {
  *density = exp_vector(x * x * -0.5) * 0.3989422804014327;
  for (int64_t l = 0; l < Simd<double>::kLanes; ++l) x[l] = 0.5 * std::erfc(-x[l] * 0.7071067811865476);
  return x;
}

template <typename Vector>
inline Vector clamp_above(Vector x, Vector limit) {
  return x > limit ? limit : x;
}

template <typename Vector>
inline Vector clamp_both(Vector x, Vector limit) {
  return x < -limit ? -limit : clamp_above(x, limit);
}

// The activation of a pre-activation h; up is the second half of the hidden vector, for swiglu alone, as is the limit.
template <typename Vector, typename acc_t>
inline Vector activate(Activation activation, Vector h, Vector up, acc_t limit) {
  Vector density;
  switch (activation) {
    case Activation::kRelu: return h > 0 ? h : Vector{};
    case Activation::kGelu: return h * normal_cdf(h, &density);
    case Activation::kSwiglu: break;
  }
  const Vector most = Vector{} + limit, gate = clamp_above(h, most);
  return gate * sigmoid_vector(gate) * clamp_both(up, most);
}

// Its derivatives by h and by up; 0 beyond the limit.
template <typename Vector, typename acc_t>
inline void activation_slopes(Activation activation, Vector h, Vector up, acc_t limit, Vector* by_h, Vector* by_up) {
  if (activation == Activation::kRelu) {
    *by_h = h > 0 ? Vector{} + 1 : Vector{};
  } else if (activation == Activation::kGelu) {
    Vector density;
    const Vector cdf = normal_cdf(h, &density);
    *by_h = cdf + h * density;
  } else {
    const Vector most = Vector{} + limit, gate = clamp_above(h, most), s = sigmoid_vector(gate);
    *by_h = h > most ? Vector{} : s * (1 + gate * (1 - s)) * clamp_both(up, most);
    *by_up = (up > most) | (up < -most) ? Vector{} : gate * s;
  }
}
