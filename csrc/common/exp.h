// The exponential function on vectors of simd.h, and what follows from it. A vector of double goes lane by lane.
// Included inside the namespace of each instruction set, so it has no include guard.

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
