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
#if GOSSAMER_VECTOR_BYTES == 64  // one instruction, where the general conversion becomes four
    return (Vector)_mm512_slli_epi32(
        _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16);
#else
    Halves h;
    std::memcpy(&h, p, sizeof(h));
    const Words w = __builtin_convertvector(h, Words) << 16;
    return reinterpret_cast<Vector>(w);
#endif
  }
  // Rounds to nearest even; NaN stays NaN.
  static void store(BFloat16* p, Vector v) {
    const Words w = reinterpret_cast<Words>(v);
    const Words rounded = (w + 0x7fff + ((w >> 16) & 1)) >> 16;
    const auto is_nan = (w & 0x7fffffff) > 0x7f800000;
    const Words upper = is_nan ? (w >> 16) | 0x40 : rounded;
#if GOSSAMER_VECTOR_BYTES == 64
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_maskz_cvtepi32_epi16(0xffff, (__m512i)upper));
#else
    const Halves h = __builtin_convertvector(upper, Halves);
    std::memcpy(p, &h, sizeof(h));
#endif
  }
};

template <>
struct Simd<Half> {
  using acc_t = float;
  using Vector [[gnu::vector_size(GOSSAMER_VECTOR_BYTES)]] = float;
  static constexpr int64_t kLanes = GOSSAMER_VECTOR_BYTES / sizeof(float);

  static Vector load(const Half* p) {
#if GOSSAMER_VECTOR_BYTES == 64
    return (Vector)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
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
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p),
                        _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif GOSSAMER_VECTOR_BYTES == 32
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
    for (int64_t i = 0; i < kLanes; ++i) p[i] = static_cast<Half>(v[i]);
#endif
  }
};

// A whole register of scalar_t as kParts vectors of acc_t. For bfloat16 part 0 holds the even elements and part 1 the
// odd ones: two cheap instructions each way instead of a widening and a narrowing. For loops in which lanes never meet.
template <typename scalar_t>
struct Wide {
  using S = Simd<scalar_t>;
  using acc_t = typename S::acc_t;
  using Vector = typename S::Vector;
  static constexpr int kParts = 1;
  static constexpr int64_t kWidth = S::kLanes;

  static void load(const scalar_t* p, Vector* parts) { parts[0] = S::load(p); }
  static void store(scalar_t* p, const Vector* parts) { S::store(p, parts[0]); }
};

template <>
struct Wide<BFloat16> {
  using acc_t = float;
  using Vector = Simd<BFloat16>::Vector;
  using Words = Simd<BFloat16>::Words;
  static constexpr int kParts = 2;
  static constexpr int64_t kWidth = GOSSAMER_VECTOR_BYTES / sizeof(BFloat16);

  static void load(const BFloat16* p, Vector* parts) {
    Words w;
    std::memcpy(&w, p, sizeof(w));
    parts[0] = reinterpret_cast<Vector>(w << 16);
    parts[1] = reinterpret_cast<Vector>(w & 0xffff0000);
  }
  static void store(BFloat16* p, const Vector* parts) {
    const Words w = (round(parts[0]) >> 16) | (round(parts[1]) & 0xffff0000);
    std::memcpy(p, &w, sizeof(w));
  }
  // To nearest even in the upper half of each word; NaN stays NaN.
  static Words round(Vector v) {
    const Words w = reinterpret_cast<Words>(v);
    const auto is_nan = (w & 0x7fffffff) > 0x7f800000;
    return is_nan ? w | 0x400000 : w + 0x7fff + ((w >> 16) & 1);
  }
};

// The first `count` elements of a register, the others 0; and the way back.
template <typename scalar_t>
inline void load_partial(const scalar_t* p, int64_t count, typename Wide<scalar_t>::Vector* parts) {
  scalar_t buffer[Wide<scalar_t>::kWidth] = {};
#if GOSSAMER_VECTOR_BYTES == 64
  const __mmask64 mask = _bzhi_u64(~0ull, static_cast<unsigned>(count * sizeof(scalar_t)));
  const __m512i bytes = _mm512_maskz_loadu_epi8(mask, p);
  std::memcpy(buffer, &bytes, sizeof(buffer));  // optimised away
#else
  for (int64_t i = 0; i < count; ++i) buffer[i] = p[i];
#endif
  Wide<scalar_t>::load(buffer, parts);
}

template <typename scalar_t>
inline void store_partial(scalar_t* p, int64_t count, const typename Wide<scalar_t>::Vector* parts) {
  scalar_t buffer[Wide<scalar_t>::kWidth];
  Wide<scalar_t>::store(buffer, parts);
  for (int64_t i = 0; i < count; ++i) p[i] = buffer[i];
}

// The sum of all lanes, in a fixed order.
template <typename scalar_t>
inline typename Simd<scalar_t>::acc_t sum_lanes(typename Simd<scalar_t>::Vector v) {
  typename Simd<scalar_t>::acc_t lanes[Simd<scalar_t>::kLanes];
  std::memcpy(lanes, &v, sizeof(v));
  for (int64_t half = Simd<scalar_t>::kLanes / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  }
  return lanes[0];
}
