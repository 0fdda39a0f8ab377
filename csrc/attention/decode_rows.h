// The rows of a cache or of the queries as words, and the way back. Included by decode_attention.h.

// Memory of one thread, in words that are also floats.
class Arena {
 public:
  explicit Arena(int64_t words) : memory_(std::make_unique_for_overwrite<float[]>(words + 16)) {
    next_ = memory_.get() + (64 - reinterpret_cast<uintptr_t>(memory_.get()) % 64) / 4;
  }
  float* take(int64_t words) { return std::exchange(next_, next_ + words); }

 private:
  std::unique_ptr<float[]> memory_;
  float* next_;
};

// Bytes of a cache in the two formats of 8 bits. Shifted into the place of a float's exponent, they lack its bias
// alone.
struct E4M3 {
  uint8_t byte;
  static constexpr int kShift = 20;
  static constexpr float kBias = 0x1p120f;
  static Vector special(Words magnitude, Vector value) {  // one pattern is not a number, none is infinite
    return magnitude == 0x7f ? as_float(Words{} + 0x7fc00000u) : value;
  }
};
struct E5M2 {
  uint8_t byte;
  static constexpr int kShift = 21;
  static constexpr float kBias = 0x1p112f;
  static Vector special(Words magnitude, Vector value) {
    return magnitude >= 0x7c ? as_float((magnitude << kShift) | 0x7f800000u) : value;
  }
};
template <typename scalar_t>
constexpr bool kFloat8 = std::is_same_v<scalar_t, E4M3> || std::is_same_v<scalar_t, E5M2>;

template <typename scalar_t>
inline Vector load_float8(const scalar_t* row) {
#if GOSSAMER_VECTOR_BYTES == 32  // the general conversion goes byte by byte
  const Words word = (Words)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(row)));
#else
  using Bytes [[gnu::vector_size(GOSSAMER_VECTOR_BYTES / 4)]] = uint8_t;
  Bytes bytes;
  std::memcpy(&bytes, row, sizeof(bytes));
  const Words word = __builtin_convertvector(bytes, Words);
#endif
  const Words magnitude = word & 0x7fu;
  const Vector value = scalar_t::special(magnitude, as_float(magnitude << scalar_t::kShift) * scalar_t::kBias);
  return as_float(as_words(value) | (word & 0x80u) << 24);
}

// Elements [begin, begin + kLanes) of a row as floats, zero past the end of the row.
template <typename scalar_t>
inline Vector load_row(const scalar_t* row, int64_t begin, int64_t size) {
  if (begin + kLanes <= size) {
    if constexpr (std::is_same_v<scalar_t, int8_t>) {
#if GOSSAMER_VECTOR_BYTES == 64
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + begin));
      return (Vector)_mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, bytes));
#elif GOSSAMER_VECTOR_BYTES == 32
      const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(row + begin));
      return (Vector)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
#else
      using Bytes [[gnu::vector_size(GOSSAMER_VECTOR_BYTES / 4)]] = int8_t;
      using Ints [[gnu::vector_size(GOSSAMER_VECTOR_BYTES)]] = int32_t;
      Bytes bytes;
      std::memcpy(&bytes, row + begin, sizeof(bytes));
      return __builtin_convertvector(__builtin_convertvector(bytes, Ints), Vector);
#endif
    } else if constexpr (kFloat8<scalar_t>) {
      return load_float8(row + begin);
    } else {
      return Simd<scalar_t>::load(row + begin);
    }
  }
  if constexpr (kFloat8<scalar_t>) {
    scalar_t rest[kLanes] = {};
    for (int64_t i = 0; begin + i < size; ++i) rest[i] = row[begin + i];
    return load_float8(rest);
  } else {
    Vector v = {};
    for (int64_t i = 0; begin + i < size; ++i) v[i] = static_cast<float>(row[begin + i]);
    return v;
  }
}

// A cache of other elements, which become floats where they are multiplied: for few rows, where a detour through memory
// would cost more than the products.
template <typename scalar_t>
struct ConvertDot : FloatDot {
  static constexpr int kWordBytes = sizeof(scalar_t);
  static Words load(const char* row, int64_t word) {
    return as_words(load_row(reinterpret_cast<const scalar_t*>(row) + word, 0, kLanes));
  }
};

// 2 kLanes neighbouring elements as bfloat16.
inline void store_pairs(Vector low, Vector high, uint32_t* out) {
#ifdef GOSSAMER_BF16_DOT
  const Words words = (Words)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  std::memcpy(out, &words, sizeof(words));
#else
  Simd<BFloat16>::store(reinterpret_cast<BFloat16*>(out), low);
  Simd<BFloat16>::store(reinterpret_cast<BFloat16*>(out) + kLanes, high);
#endif
}

// One row of a cache or of the queries as words, zero past its end; exact where words are bfloat16 pairs, because the
// row is then bfloat16 or of bytes.
template <typename scalar_t, typename Dot>
void convert_row(const char* source, int64_t size, int64_t words, uint32_t* out) {
  const scalar_t* row = reinterpret_cast<const scalar_t*>(source);
  for (int64_t w = 0; w < words; w += kLanes) {
    if constexpr (Dot::kPack == 1) {
      Float::store(reinterpret_cast<float*>(out + w), load_row(row, w, size));
    } else {
      store_pairs(load_row(row, 2 * w, size), load_row(row, 2 * w + kLanes, size), out + w);
    }
  }
}

template <typename Dot>
auto row_converter(Element element) {
  switch (element) {
    case Element::kFloat: return convert_row<float, Dot>;
    case Element::kBFloat16: return convert_row<BFloat16, Dot>;
    case Element::kHalf: return convert_row<Half, Dot>;
    case Element::kInt8: return convert_row<int8_t, Dot>;
    case Element::kE4M3: return convert_row<E4M3, Dot>;
    default: return convert_row<E5M2, Dot>;
  }
}

template <typename scalar_t>
void store_row(const float* row, float factor, int64_t size, char* out) {
  scalar_t* p = reinterpret_cast<scalar_t*>(out);
  int64_t d = 0;
  for (; d + kLanes <= size; d += kLanes) Simd<scalar_t>::store(p + d, factor * Float::load(row + d));
  for (; d < size; ++d) p[d] = static_cast<scalar_t>(factor * row[d]);
}

inline auto row_storer(Element element) {
  switch (element) {
    case Element::kFloat: return store_row<float>;
    case Element::kBFloat16: return store_row<BFloat16>;
    default: return store_row<Half>;
  }
}
