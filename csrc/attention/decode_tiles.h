// The two small matrix products of decode_attention and the exponential between them. Included by decode_attention.h.
//
// A vector of kLanes lanes holds kRows query rows times kChunk = kLanes / kRows neighbouring words of one key: with
// many rows every lane is a row and keys are broadcast, with one row the lanes run along the key. A word is one float
// or two bfloat16.

using Float = Simd<float>;
using Vector = Float::Vector;
using Words [[gnu::vector_size(GOSSAMER_VECTOR_BYTES)]] = uint32_t;
constexpr int kLanes = Float::kLanes;
constexpr int kAccumulators = kLanes == 16 ? 16 : 8;  // half of the vector registers
constexpr float kLog2E = 1.44269504088896341f;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

inline Words load_words(const void* p) {
  Words w;
  std::memcpy(&w, p, sizeof(w));
  return w;
}

inline Vector as_float(Words w) { return reinterpret_cast<Vector>(w); }
inline Words as_words(Vector v) { return reinterpret_cast<Words>(v); }

// How words are multiplied. A word of the cache holds kPack elements of a row, of which part() takes as many at a time
// as there are kLevels of query words; a word of probabilities stands for kPositions positions.
struct FloatDot {
  static constexpr int kPack = 1, kLevels = 1, kPositions = 1, kWordBytes = sizeof(uint32_t);
  static Words load(const char* row, int64_t word) { return load_words(row + word * sizeof(uint32_t)); }
  static Words part(Words word, int) { return word; }
  static Vector mul_add(Vector acc, Words a, Words b) { return acc + as_float(a) * as_float(b); }
};

#ifdef GOSSAMER_BF16_DOT
struct Bf16Dot {  // the processor multiplies pairs
  static constexpr int kPack = 2, kLevels = 1, kPositions = 2, kWordBytes = sizeof(uint32_t);
  static Words load(const char* row, int64_t word) { return load_words(row + word * sizeof(uint32_t)); }
  static Words part(Words word, int) { return word; }
  static Vector mul_add(Vector acc, Words a, Words b) {
    return (Vector)_mm512_dpbf16_ps((__m512)acc, (__m512bh)a, (__m512bh)b);
  }
};
#else
struct Bf16Dot : FloatDot {  // the halves of a word are floats, the even element after a shift
  static constexpr int kPack = 2, kLevels = 2;
  static Words part(Words word, int level) { return level == 0 ? word << 16 : word & 0xffff0000u; }
};
#endif
// True where two vectors of values hold the even and the odd dims of 2 kLanes, and so do all outputs before finish().
template <typename Dot>
constexpr bool kSplitDims = Dot::kPack == 2 && Dot::kPositions == 1;

// kChunk words from memory, repeated over the vector.
template <int kChunk>
inline Words broadcast(const void* p) {
#if GOSSAMER_VECTOR_BYTES == 64
  if constexpr (kChunk == 2) return (Words)_mm512_set1_epi64(*static_cast<const long long*>(p));
  if constexpr (kChunk == 4)
    return (Words)_mm512_maskz_broadcast_i32x4(0xffff, _mm_loadu_si128(static_cast<const __m128i*>(p)));
  if constexpr (kChunk == 8)
    return (Words)_mm512_maskz_broadcast_i64x4(0xff, _mm256_loadu_si256(static_cast<const __m256i*>(p)));
#elif GOSSAMER_VECTOR_BYTES == 32
  if constexpr (kChunk == 2) return (Words)_mm256_set1_epi64x(*static_cast<const long long*>(p));
  if constexpr (kChunk == 4) return (Words)_mm256_broadcastsi128_si256(_mm_loadu_si128(static_cast<const __m128i*>(p)));
#endif
  if constexpr (kChunk == kLanes) return load_words(p);
  Words w;
  uint32_t chunk[kChunk];
  std::memcpy(chunk, p, sizeof(chunk));
  if constexpr (kChunk == 1) return chunk[0] - Words{};
  for (int i = 0; i < kLanes; ++i) w[i] = chunk[i % kChunk];
  return w;
}

template <int kHalf, int kFrom, int... i>
inline Vector select_halves(Vector a, Vector b, std::integer_sequence<int, i...>) {
  return __builtin_shufflevector(a, b, ((i & kHalf) == 0 ? i + kFrom : kLanes + i - kHalf + kFrom)...);
}

// lane (r, c) of the result = sum over c' of lane (r, c') of acc[c]: kChunk keys end in one vector.
template <int kChunk>
inline Vector reduce_chunks(Vector (&acc)[kChunk]) {
  if constexpr (kChunk == 1) {
    return acc[0];
  } else {
    constexpr int kHalf = kChunk / 2;
    using Lanes = std::make_integer_sequence<int, kLanes>;
    Vector sums[kHalf];
#pragma GCC unroll 16
    for (int k = 0; k < kHalf; ++k) {
      sums[k] = select_halves<kHalf, 0>(acc[k], acc[k + kHalf], Lanes{}) +
                select_halves<kHalf, kHalf>(acc[k], acc[k + kHalf], Lanes{});
    }
    return reduce_chunks(sums);
  }
}

// tile[i][j] becomes tile[j][i].
template <int kHalf = kLanes / 2>
inline void transpose(Vector (&tile)[kLanes]) {
  using Lanes = std::make_integer_sequence<int, kLanes>;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    if ((i & kHalf) != 0) continue;
    const Vector low = tile[i], high = tile[i + kHalf];
    tile[i] = select_halves<kHalf, 0>(low, high, Lanes{});
    tile[i + kHalf] = select_halves<kHalf, kHalf>(low, high, Lanes{});
  }
  if constexpr (kHalf > 1) transpose<kHalf / 2>(tile);
}

// 2^x for x <= 0, relative error below 3e-7; 0 far below the normal numbers, NaN for NaN.
inline Vector exp2_vector(Vector x) {
#if GOSSAMER_VECTOR_BYTES == 64
  const __m512 y = _mm512_maskz_max_ps(0xffff, _mm512_set1_ps(-160.0f), (__m512)x);  // of NaN and a number: the NaN
  const __m512 n = _mm512_maskz_roundscale_ps(0xffff, y, _MM_FROUND_TO_NEAREST_INT);
  const Vector f = (Vector)y - (Vector)n;
  Vector q = 1.33906565e-3f - Vector{};
  q = q * f + 9.61817026e-3f;
  q = q * f + 5.55036e-2f;
  q = q * f + 2.40226507e-1f;
  q = q * f + 6.93147182e-1f;
  q = q * f + 1.0f;
  return (Vector)_mm512_maskz_scalef_ps(0xffff, (__m512)q, n);
#else
  const Vector magic = 12582912.0f - Vector{};  // 1.5 * 2^23: adding it rounds to an integer
  const Vector clamped = x < -126.0f ? -126.0f - Vector{} : x;
  const Vector shifted = clamped + magic;
  const Vector r = clamped - (shifted - magic);  // [-0.5, 0.5]
  Vector p = 1.33906565e-3f - Vector{};
  p = p * r + 9.61817026e-3f;
  p = p * r + 5.55036e-2f;
  p = p * r + 2.40226507e-1f;
  p = p * r + 6.93147182e-1f;
  p = p * r + 1.0f;
  const Vector result = as_float(as_words(p) + (as_words(shifted) << 23));
  return x < -126.0f ? Vector{} : result;
#endif
}

// By exponentials, but by its series where 1 - t would cancel: a score below a quarter of the softcap keeps its digits.
inline Vector tanh_vector(Vector x) {
  const Words sign = as_words(x) & 0x80000000u;
  const Vector t = exp2_vector(as_float(as_words(x) | 0x80000000u) * (2 * kLog2E));
  const Vector large = as_float(as_words((1.0f - t) / (1.0f + t)) | sign);
  const Vector square = x * x;
  Vector p = 2.18694885e-2f * square - 5.39682540e-2f;
  p = p * square + 1.33333333e-1f;
  p = p * square - 3.33333333e-1f;
  const Vector small = x + x * square * p;
  return square < 0.0625f ? small : large;
}

// Keys per tile of scores: enough sums in flight to hide the latency of the multiplication.
template <int kRows>
constexpr int kTileKeys = std::max(kLanes / kRows, kAccumulators / 2);

// scores[key / kChunk][v][lane] = factor * dot(query row, key) for one tile of keys.
//   q [steps][kLevels][kVectors][kLanes] words, keys: kTile rows of steps * kChunk words
template <typename Dot, int kRows, int kVectors, int kTile = kTileKeys<kRows>>
inline void score_tile(const uint32_t* q, const char* const* keys, int64_t steps, float factor, float* scores) {
  constexpr int kChunk = kLanes / kRows;
  constexpr int kSums = kVectors == 1 && 2 * kTile <= kAccumulators ? 2 : 1;
  Vector acc[kSums][kVectors][kTile];
  const char* key[kTile];
#pragma GCC unroll 16
  for (int t = 0; t < kTile; ++t) {
    key[t] = keys[t];
    for (int v = 0; v < kVectors; ++v) {
      acc[0][v][t] = Vector{};
      acc[kSums - 1][v][t] = Vector{};
    }
  }
  const auto step = [&](int64_t s, int sum) {
    Words rows[Dot::kLevels][kVectors];
    for (int l = 0; l < Dot::kLevels; ++l) {
      for (int v = 0; v < kVectors; ++v) rows[l][v] = load_words(q + ((s * Dot::kLevels + l) * kVectors + v) * kLanes);
    }
#pragma GCC unroll 16
    for (int t = 0; t < kTile; ++t) {
      const Words word =
          kChunk == kLanes ? Dot::load(key[t], s * kChunk) : broadcast<kChunk>(key[t] + s * kChunk * sizeof(uint32_t));
#pragma GCC unroll 2
      for (int l = 0; l < Dot::kLevels; ++l) {
        const Words part = Dot::part(word, l);
        const int which = Dot::kLevels == 2 ? l % kSums : sum;
        for (int v = 0; v < kVectors; ++v) acc[which][v][t] = Dot::mul_add(acc[which][v][t], rows[l][v], part);
      }
    }
  };
  int64_t s = 0;
  for (; s + kSums <= steps; s += kSums) {
    step(s, 0);
    if constexpr (kSums == 2) step(s + 1, 1);
  }
  if (s < steps) step(s, 0);
#pragma GCC unroll 2
  for (int v = 0; v < kVectors; ++v) {
#pragma GCC unroll 16
    for (int t = 0; t < kTile; t += kChunk) {
      Vector sums[kChunk];
#pragma GCC unroll 16
      for (int c = 0; c < kChunk; ++c)
        sums[c] = kSums == 2 ? acc[0][v][t + c] + acc[kSums - 1][v][t + c] : acc[0][v][t + c];
      Float::store(scores + (t / kChunk * kVectors + v) * kLanes, factor * reduce_chunks(sums));
    }
  }
}

// True where the lanes of a vector run along the key although there are several rows: with 16 registers that takes half
// the instructions of a broadcast for every kChunk words.
template <typename Dot, int kRows>
constexpr bool kAlong = kLanes == 8 && (kRows == 2 || kRows == 4) && Dot::kPositions == 1;

// The scores of kChunk keys, in the layout of score_tile. Every row and key has two sums, for the two halves of a word
// or for even and odd steps: with one, four rows were too few to hide the latency of the multiplication.
//   q [steps][kLevels][kRows][kLanes] words, keys: kChunk rows of steps * kLanes words
template <typename Dot, int kRows>
inline void score_along(const uint32_t* q, const char* const* keys, int64_t steps, float factor, float* scores) {
  constexpr int kChunk = kLanes / kRows, kKeys = std::max(4 / kRows, 1);  // keys that share the loads of the queries
  Vector sums[kLanes];
#pragma GCC unroll 4
  for (int c = 0; c < kChunk; c += kKeys) {
    Vector acc[2][kKeys][kRows] = {};
    const auto step = [&](int64_t s, int sum) {
      Words word[kKeys];
#pragma GCC unroll 2
      for (int k = 0; k < kKeys; ++k) word[k] = Dot::load(keys[c + k], s * kLanes);
#pragma GCC unroll 2
      for (int l = 0; l < Dot::kLevels; ++l) {
        const int which = Dot::kLevels == 2 ? l : sum;
#pragma GCC unroll 4
        for (int r = 0; r < kRows; ++r) {
          const Words row = load_words(q + ((s * Dot::kLevels + l) * kRows + r) * kLanes);
#pragma GCC unroll 2
          for (int k = 0; k < kKeys; ++k) {
            acc[which][k][r] = Dot::mul_add(acc[which][k][r], row, Dot::part(word[k], l));
          }
        }
      }
    };
    int64_t s = 0;
    for (; s + 2 <= steps; s += 2) {
      step(s, 0);
      step(s + 1, 1);
    }
    if (s < steps) step(s, 0);
#pragma GCC unroll 2
    for (int k = 0; k < kKeys; ++k) {
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) sums[r * kChunk + c + k] = acc[0][k][r] + acc[1][k][r];
    }
  }
  Float::store(scores, factor * reduce_chunks(sums));
}

// Values of two vectors of dims, packed beforehand: [unit][2 kLanes] words.
struct PackedValues {
  const uint32_t* data;
  template <int kChunk, int kVectors>
  void load(int64_t unit, int64_t, Words* out) const {
    static_assert(kVectors == 2);
    for (int v = 0; v < kVectors; ++v) out[v] = load_words(data + (2 * unit + v) * kLanes);
  }
};

// Values read where they lie. A unit is one key, but where the processor multiplies pairs it is the keys
// (2 g kChunk + c, 2 g kChunk + kChunk + c), the order in which softmax() pairs the probabilities.
template <typename Dot>
struct DirectValues {
  const char* const* rows;

  template <int kChunk, int kVectors>
  void load(int64_t unit, int64_t d, Words* out) const {
    if constexpr (Dot::kPack == 1) {
      for (int v = 0; v < kVectors; ++v) out[v] = Dot::load(rows[unit], d + v * kLanes);
    } else if constexpr (kSplitDims<Dot>) {
      for (int v = 0; v < kVectors; v += 2) {
        const Words word = load_words(rows[unit] + (d + v * kLanes) * 2);
        for (int l = 0; l < 2; ++l) out[v + l] = Dot::part(word, l);
      }
    } else {
      using Halves [[gnu::vector_size(GOSSAMER_VECTOR_BYTES)]] = uint16_t;
      const int64_t a = unit / kChunk * 2 * kChunk + unit % kChunk, b = a + kChunk;
      for (int v = 0; v < kVectors; v += 2) {
        Halves x, y;
        std::memcpy(&x, rows[a] + (d + v * kLanes) * 2, sizeof(x));
        std::memcpy(&y, rows[b] + (d + v * kLanes) * 2, sizeof(y));
        interleave(x, y, out + v, std::make_integer_sequence<int, kLanes>{});
      }
    }
  }
  template <typename Halves, int... i>
  static void interleave(Halves x, Halves y, Words* out, std::integer_sequence<int, i...>) {
    constexpr int kHalves = 2 * kLanes;
    out[0] =
        (Words)__builtin_shufflevector(x, y, (i / 2 + (i % 2) * kHalves)..., (i / 2 + kLanes / 2 + i % 2 * kHalves)...);
    out[1] = (Words)__builtin_shufflevector(x, y, (i / 2 + kLanes + i % 2 * kHalves)...,
                                            (i / 2 + kLanes + kLanes / 2 + i % 2 * kHalves)...);
  }
};

constexpr int kFetchUnits = 8;

// out[m][d] += sum over units of probability[unit][row m] * value[unit][d] for kBlock rows and kVectors vectors of d;
// with `fresh` out starts at zero. Every kFetchUnits units `ahead` fetches so many lines.
//   probabilities [groups][stride words], row m at word m * kChunk, its kChunk units side by side
template <typename Dot, int kChunk, int kBlock, int kVectors, typename Values>
inline void value_tile(const uint32_t* probabilities, int64_t stride, int64_t groups, const Values& values, int64_t d,
                       float* out, int64_t out_stride, bool fresh, Ahead& ahead, int64_t lines) {
  constexpr int64_t kFetchGroups = std::max(kFetchUnits / kChunk, 1);
  Vector acc[kBlock][kVectors];
#pragma GCC unroll 16
  for (int m = 0; m < kBlock; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      acc[m][v] = fresh ? Vector{} : Float::load(out + m * out_stride + d + v * kLanes);
    }
  }
  for (int64_t g = 0; g < groups; ++g) {
    if (g % kFetchGroups == 0) ahead.fetch(lines);
    const uint32_t* p = probabilities + g * stride;
#pragma GCC unroll 4
    for (int c = 0; c < kChunk; ++c) {
      Words value[kVectors];
      values.template load<kChunk, kVectors>(g * kChunk + c, d, value);
#pragma GCC unroll 16
      for (int m = 0; m < kBlock; ++m) {
        const Words word = p[m * kChunk + c] - Words{};
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) acc[m][v] = Dot::mul_add(acc[m][v], word, value[v]);
      }
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kBlock; ++m) {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) Float::store(out + m * out_stride + d + v * kLanes, acc[m][v]);
  }
}
