// Vectors of GOSSAMER_VECTOR_BYTES bytes that the compiler lowers to the instruction set in force. Included by
// foreach_isa.h inside the namespace of each instruction set, so it has no include guard and includes nothing.

using BFloat16 = torch::headeronly::BFloat16;
using Half = torch::headeronly::Half;

// Loads and stores scalar_t in memory as vectors of acc_t, the type that sums are kept in.
template <typename scalar_t>
struct Simd;

template <>
struct Simd<float> {
  using acc_t = float;
  using Vector [[gnu::vector_size(GOSSAMER_VECTOR_BYTES)]] = float;
  static constexpr int64_t kLanes = GOSSAMER_VECTOR_BYTES / sizeof(float);

  static Vector load(const float* p) {
    Vector v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static void store(float* p, Vector v) { std::memcpy(p, &v, sizeof(v)); }
};

template <>
struct Simd<double> {
  using acc_t = double;
  using Vector [[gnu::vector_size(GOSSAMER_VECTOR_BYTES)]] = double;
  static constexpr int64_t kLanes = GOSSAMER_VECTOR_BYTES / sizeof(double);

  static Vector load(const double* p) {
    Vector v;
    std::memcpy(&v, p, sizeof(v));
    return v;
  }
  static void store(double* p, Vector v) { std::memcpy(p, &v, sizeof(v)); }
};

template <>
struct Simd<BFloat16> {
  using acc_t = float;
  using Vector [[gnu::vector_size(GOSSAMER_VECTOR_BYTES)]] = float;
  using Words [[gnu::vector_size(GOSSAMER_VECTOR_BYTES)]] = uint32_t;
  using Halves [[gnu::vector_size(GOSSAMER_VECTOR_BYTES / 2)]] = uint16_t;
  static constexpr int64_t kLanes = GOSSAMER_VECTOR_BYTES / sizeof(float);

  static Vector load(const BFloat16* p) {
    Halves h;
    std::memcpy(&h, p, sizeof(h));
    const Words w = __builtin_convertvector(h, Words) << 16;
    return reinterpret_cast<Vector>(w);
  }
  // Rounds to nearest even; NaN stays NaN.
  static void store(BFloat16* p, Vector v) {
    const Words w = reinterpret_cast<Words>(v);
    const Words rounded = (w + 0x7fff + ((w >> 16) & 1)) >> 16;
    const auto is_nan = (w & 0x7fffffff) > 0x7f800000;
    const Halves h = __builtin_convertvector(is_nan ? (w >> 16) | 0x40 : rounded, Halves);
    std::memcpy(p, &h, sizeof(h));
  }
};

template <>
struct Simd<Half> {
  using acc_t = float;
  using Vector [[gnu::vector_size(GOSSAMER_VECTOR_BYTES)]] = float;
  static constexpr int64_t kLanes = GOSSAMER_VECTOR_BYTES / sizeof(float);

  static Vector load(const Half* p) {
#if GOSSAMER_VECTOR_BYTES == 64
    return (Vector)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
#elif GOSSAMER_VECTOR_BYTES == 32
    return (Vector)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
#else
    Vector v;
    for (int64_t i = 0; i < kLanes; ++i) v[i] = static_cast<float>(p[i]);
    return v;
#endif
  }
  // Rounds to nearest even.
  static void store(Half* p, Vector v) {
#if GOSSAMER_VECTOR_BYTES == 64
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif GOSSAMER_VECTOR_BYTES == 32
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int64_t i = 0; i < kLanes; ++i) p[i] = static_cast<Half>(v[i]);
#endif
  }
};
