// Activations and their derivatives on vectors of float; a vector of double goes lane by lane.

// e^x to 2 ulp: x = n ln 2 + r, a polynomial in r, and n added to the exponent.
inline Simd<float>::Vector exp_vector(Simd<float>::Vector x) {
  using Vector = Simd<float>::Vector;
  using Words [[gnu::vector_size(GOSSAMER_VECTOR_BYTES)]] = uint32_t;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the rounded integer in the low bits
  x = x < -87.0f ? Vector{} - 87.0f : x;
  x = x > 88.0f ? Vector{} + 88.0f : x;
  const Vector shifted = x * 1.44269504f + kRound;
  const Vector n = shifted - kRound;
  const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 0.5f;
  p = p * (r * r) + r + 1.0f;
  return reinterpret_cast<Vector>(reinterpret_cast<Words>(p) + (reinterpret_cast<Words>(shifted) << 23));
}

inline Simd<double>::Vector exp_vector(Simd<double>::Vector x) {
  for (int64_t l = 0; l < Simd<double>::kLanes; ++l) x[l] = std::exp(x[l]);
  return x;
}

template <typename Vector>
inline Vector sigmoid_vector(Vector x) {
  return 1 / (1 + exp_vector(-x));
}

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
