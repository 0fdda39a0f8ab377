// Scores of experts from their logits, on vectors: exp (the numerator of softmax), sigmoid, sqrt(softplus). A logit of
// minus infinity scores 0, and NaN stays NaN.
#include "common/exp.h"

template <typename Vector>
inline Vector keep_nan(Vector x, Vector y) {
  return x == x ? y : x;
}

// e^x for x <= 0 or NaN.
template <typename Vector>
inline Vector exp_or_zero(Vector x) {
  const Vector y = exp_vector(x);
  return x >= -87 ? y : x < -87 ? Vector{} : x;
}

// log(1 + u) for u in [0, 1] by the series of 2 atanh(u / (2 + u)); the first term left out is below 1e-9.
inline Simd<float>::Vector log1p_vector(Simd<float>::Vector u) {
  const auto z = u / (u + 2), w = z * z;
  auto p = w * (1 / 15.0f) + 1 / 13.0f;
  for (const float n : {11.0f, 9.0f, 7.0f, 5.0f, 3.0f}) p = p * w + 1 / n;
  return 2 * z * (p * w + 1);
}

inline Simd<double>::Vector log1p_vector(Simd<double>::Vector u) {
  for (int64_t l = 0; l < Simd<double>::kLanes; ++l) u[l] = std::log1p(u[l]);
  return u;
}

template <typename Vector>
inline Vector sqrt_vector(Vector x) {
#if GOSSAMER_VECTOR_BYTES == 64
  if constexpr (std::is_same_v<Vector, Simd<float>::Vector>) return (Vector)_mm512_sqrt_ps((__m512)x);
#elif GOSSAMER_VECTOR_BYTES == 32
  if constexpr (std::is_same_v<Vector, Simd<float>::Vector>) return (Vector)_mm256_sqrt_ps((__m256)x);
#endif
  for (size_t l = 0; l < sizeof(Vector) / sizeof(x[0]); ++l) x[l] = std::sqrt(x[l]);
  return x;
}

template <typename Vector>
inline Vector softplus_vector(Vector x) {
  return (x > 0 ? x : Vector{}) + log1p_vector(exp_or_zero(x > 0 ? -x : x));
}

// 1 / (1 + e^-x), through e^-|x| so that neither end is rounded away.
template <typename Vector>
inline Vector exact_sigmoid(Vector x) {
  const Vector e = exp_or_zero(x > 0 ? -x : x);
  return (x > 0 ? Vector{} + 1 : e) / (1 + e);
}

template <typename Vector>
inline Vector score_vector(Score score, Vector x) {
  if (score == Score::kSoftmax) return exp_or_zero(x);
  return score == Score::kSigmoid ? exact_sigmoid(x) : keep_nan(x, sqrt_vector(softplus_vector(x)));
}

// The derivative of a score by its logit; not for softmax. 0 where sqrt(softplus) is 0.
template <typename Vector>
inline Vector score_slope(Score score, Vector x, Vector s) {
  if (score == Score::kSigmoid) return s * exact_sigmoid(-x);
  return s > 0 ? exact_sigmoid(x) / (2 * s) : Vector{};
}
