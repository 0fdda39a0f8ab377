// The two products for int8 caches on processors that multiply four bytes per lane. Included by decode_attention.h.
//
// Cache bytes k are read as the unsigned k + 128. The other side, queries or probabilities of one row, becomes an
// integer of 16 bits relative to its largest entry, n = 256 high + low with digits in [-128, 127]:
// sum k n = 256 (sum (k + 128) high - 128 sum high) + the same of low. All sums are exact integers, so the only
// rounding is that of n, 2^-16 of the row's largest entry; the scales of the cache meet the scores and the
// probabilities.

constexpr float kDigitRange = 127 * 256;
using Ints [[gnu::vector_size(GOSSAMER_VECTOR_BYTES)]] = int32_t;

// What belongs to the digits of the probabilities: [rows] factors and [rows][2] first terms of their sums.
struct Digits {
  float* factor;
  int32_t* start;
};

inline Ints round_ints(Vector x) {
#if GOSSAMER_VECTOR_BYTES == 64
  return (Ints)_mm512_maskz_cvtps_epi32(0xffff, (__m512)x);
#else
  Ints n;
  for (int i = 0; i < kLanes; ++i) n[i] = static_cast<int32_t>(std::nearbyint(x[i]));
  return n;
#endif
}

#ifdef GOSSAMER_BF16_DOT
struct Int8Dot {
  static constexpr int kPack = 4, kLevels = 2, kPositions = 4, kWordBytes = sizeof(uint32_t);
  static Ints mul_add(Ints acc, Words bytes, Words digits) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)acc, (__m512i)bytes, (__m512i)digits);
  }
};

// scores[key / kChunk][lane] = factor[lane] * dot(query row, key) for one tile of keys.
//   q [steps][2 levels][kLanes] words, start [2][kLanes], factor [kLanes]
template <int kRows>
inline void score_digits(const uint32_t* q, const int32_t* start, const float* factor, const char* const* keys,
                         int64_t steps, float* scores) {
  constexpr int kChunk = kLanes / kRows, kTile = kTileKeys<kRows>, kPart = std::min(kTile, 8);
  Vector sums[kTile];
#pragma GCC unroll 2
  for (int part = 0; part < kTile; part += kPart) {
    Ints acc[2][kPart];
#pragma GCC unroll 8
    for (int t = 0; t < kPart; ++t) {
      std::memcpy(&acc[0][t], start, sizeof(Ints));
      std::memcpy(&acc[1][t], start + kLanes, sizeof(Ints));
    }
    for (int64_t s = 0; s < steps; ++s) {
      const Words high = load_words(q + 2 * s * kLanes), low = load_words(q + (2 * s + 1) * kLanes);
#pragma GCC unroll 8
      for (int t = 0; t < kPart; ++t) {
        const Words bytes = broadcast<kChunk>(keys[part + t] + s * kChunk * 4) ^ 0x80808080u;
        acc[0][t] = Int8Dot::mul_add(acc[0][t], bytes, high);
        acc[1][t] = Int8Dot::mul_add(acc[1][t], bytes, low);
      }
    }
#pragma GCC unroll 8
    for (int t = 0; t < kPart; ++t) {
      sums[part + t] = 256.0f * __builtin_convertvector(acc[0][t], Vector) + __builtin_convertvector(acc[1][t], Vector);
    }
  }
#pragma GCC unroll 16
  for (int t = 0; t < kTile; t += kChunk) {
    Vector chunk[kChunk];
#pragma GCC unroll 16
    for (int c = 0; c < kChunk; ++c) chunk[c] = sums[t + c];
    Float::store(scores + t / kChunk * kLanes, Float::load(factor) * reduce_chunks(chunk));
  }
}

// out[row][level][4 vectors] = start[row][level] + digits * values for kBlock rows and 64 dims from d on, in the lane
// order of the unpacking; half says which 2 of the 4 vectors. Every group of keys `ahead` fetches so many lines.
//   digits [groups][2 levels][kLanes] words, row m at word m * kChunk
template <int kChunk, int kBlock, int kHalf>
inline void value_digits(const uint32_t* digits, int64_t groups, const char* const* rows, int64_t d,
                         const int32_t* start, int32_t* out, Ahead& ahead, int64_t lines) {
  Ints acc[kBlock][2][2];
#pragma GCC unroll 8
  for (int m = 0; m < kBlock; ++m) {
#pragma GCC unroll 2
    for (int level = 0; level < 2; ++level) {
      acc[m][level][0] = start[2 * m + level] - Ints{};
      acc[m][level][1] = acc[m][level][0];
    }
  }
  for (int64_t g = 0; g < groups; ++g) {
    ahead.fetch(lines);
#pragma GCC unroll 16
    for (int c = 0; c < kChunk; ++c) {
      __m512i row[4];
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) row[i] = (__m512i)load_words(rows[(4 * g + i) * kChunk + c] + d);
      constexpr __mmask64 kAll = ~__mmask64{0};
      const auto unpack = [&](__m512i a, __m512i b) {
        return kHalf == 0 ? _mm512_maskz_unpacklo_epi8(kAll, a, b) : _mm512_maskz_unpackhi_epi8(kAll, a, b);
      };
      const __m512i ab = unpack(row[0], row[1]), cd = unpack(row[2], row[3]);
      const Words bytes[2] = {(Words)_mm512_maskz_unpacklo_epi16(~__mmask32{0}, ab, cd) ^ 0x80808080u,
                              (Words)_mm512_maskz_unpackhi_epi16(~__mmask32{0}, ab, cd) ^ 0x80808080u};
      const uint32_t* p = digits + 2 * g * kLanes + c;
#pragma GCC unroll 8
      for (int m = 0; m < kBlock; ++m) {
#pragma GCC unroll 2
        for (int level = 0; level < 2; ++level) {
          const Words word = p[level * kLanes + m * kChunk] - Words{};
          acc[m][level][0] = Int8Dot::mul_add(acc[m][level][0], bytes[0], word);
          acc[m][level][1] = Int8Dot::mul_add(acc[m][level][1], bytes[1], word);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int m = 0; m < kBlock; ++m) {
#pragma GCC unroll 2
    for (int level = 0; level < 2; ++level) {
      std::memcpy(out + ((2 * m + level) * 4 + 2 * kHalf) * kLanes, acc[m][level], sizeof(acc[m][level]));
    }
  }
}
#endif

// out[row][d] = factor[row] * (256 high + low) for the 64 dims of value_digits, in the order of dims: lane 4 b + i of
// vector v is dim 16 b + 4 v + i.
template <int kBlock>
inline void join_digits(const int32_t* sums, const float* factor, float* out, int64_t out_stride) {
  for (int m = 0; m < kBlock; ++m, sums += 8 * kLanes, out += out_stride) {
    for (int v = 0; v < 4; ++v) {
      Ints high, low;
      std::memcpy(&high, sums + v * kLanes, sizeof(high));
      std::memcpy(&low, sums + (4 + v) * kLanes, sizeof(low));
      const Vector joined =
          factor[m] * (256.0f * __builtin_convertvector(high, Vector) + __builtin_convertvector(low, Vector));
      for (int b = 0; b < 4; ++b)
        std::memcpy(out + 16 * b + 4 * v, reinterpret_cast<const float*>(&joined) + 4 * b, 16);
    }
  }
}
