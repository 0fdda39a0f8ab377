// The few rows of an expert that one token or a small batch sends it. Its weights are then read once and in the order
// in which they lie in memory, a vector of each row at a time, so that nothing is packed and the read bandwidth is the
// limit: every product is the sum of eight lanes. Packed panels (packed_product.h) add up the same eight sums one after
// the other and in the same tree, so that a result does not depend on how many rows an expert has.

// How products of scalar_t are summed: word s of two bfloat16, or of one float, goes to sum s % kPhases. For types and
// instruction sets without this path there is one sum.
template <typename scalar_t>
struct SumOrder {
  static constexpr bool kFew = GOSSAMER_VECTOR_BYTES == 32 && !std::is_same_v<scalar_t, double>;
  static constexpr int64_t kPhases = kFew ? 8 : 1;
  static constexpr int64_t kPair = kFew ? 4 / sizeof(scalar_t) : 1;
  static constexpr int64_t kBlock = kPhases * kPair;  // elements that one register holds

  static int64_t phase_steps(int64_t depth) { return (depth + kBlock - 1) / kBlock * kPair; }
  // Between the first steps of two sums: not a power of two, so that what is written to all sums in turns does not meet
  // in one set of the cache.
  static int64_t phase_stride(int64_t depth) { return phase_steps(depth) + (kPhases > 1); }
  // The step at which element p is added, the steps of a sum side by side.
  static int64_t step(int64_t p, int64_t stride) {
    return p / kPair % kPhases * stride + p / kBlock * kPair + p % kPair;
  }
};

#if GOSSAMER_VECTOR_BYTES == 32
constexpr int64_t kFewRows = 32;         // beyond, panels are packed
constexpr int64_t kFewColumns = 48;      // whose products are finished at a time
constexpr int64_t kFewAhead = 12 << 10;  // bytes between what is multiplied and what is brought into the cache

// The elements of a register in two vectors of float: those at even places, then those at odd ones.
struct Elements {
  __m256 parts[2];
};

[[gnu::always_inline]] inline Elements load_elements(const BFloat16* p) {
  const __m256i words = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000));
  return {{_mm256_castsi256_ps(_mm256_slli_epi32(words, 16)), _mm256_castsi256_ps(_mm256_and_si256(words, upper))}};
}
[[gnu::always_inline]] inline Elements load_elements(const float* p) {
  return {{_mm256_loadu_ps(p), _mm256_setzero_ps()}};
}

template <typename scalar_t>
[[gnu::always_inline]] inline Elements load_some(const scalar_t* p, int64_t n) {
  scalar_t padded[SumOrder<scalar_t>::kBlock] = {};
  std::memcpy(padded, p, n * sizeof(scalar_t));
  return load_elements(padded);
}

// A row as floats, in the order in which load_elements gives them, zero beyond depth.
template <typename scalar_t>
inline void widen_row(const scalar_t* row, int64_t depth, float* out) {
  constexpr int64_t kBlock = SumOrder<scalar_t>::kBlock;
  for (int64_t p = 0; p < depth; p += kBlock, out += kBlock) {
    const Elements e = p + kBlock <= depth ? load_elements(row + p) : load_some(row + p, depth - p);
    for (int64_t part = 0; part < SumOrder<scalar_t>::kPair; ++part) _mm256_storeu_ps(out + 8 * part, e.parts[part]);
  }
}

// out[j] = the lanes of sums[j], added in pairs.
template <int kSums>
[[gnu::always_inline]] inline void add_pairs(const __m256* sums, float* out) {
  const auto sum = [&](int j) { return sums[std::min(j, kSums - 1)]; };
  const __m256 fours = _mm256_hadd_ps(_mm256_hadd_ps(sum(0), sum(1)), _mm256_hadd_ps(sum(2), sum(3)));
  alignas(16) float totals[4];
  _mm_store_ps(totals, _mm_add_ps(_mm256_castps256_ps128(fours), _mm256_extractf128_ps(fours, 1)));
  std::memcpy(out, totals, kSums * sizeof(float));
}

// out[i * kFewColumns + j] = <x[i], w[j]>: widened rows of x, `width` apart, and rows of weights that lie side by side.
template <int kRows, int kColumns, typename scalar_t>
[[gnu::noinline]] void few_tile(const float* x, int64_t width, const scalar_t* w, int64_t depth, float* out) {
  using Order = SumOrder<scalar_t>;
  __m256 sums[kRows][kColumns] = {};
  const auto step = [&](int64_t p, const auto& load) __attribute__((always_inline)) {
#pragma GCC unroll 4
    for (int j = 0; j < kColumns; ++j) {
      const Elements weights = load(w + j * depth + p);
#pragma GCC unroll 2
      for (int part = 0; part < Order::kPair; ++part) {
#pragma GCC unroll 4
        for (int i = 0; i < kRows; ++i) {
          sums[i][j] = _mm256_fmadd_ps(weights.parts[part], _mm256_loadu_ps(x + i * width + p + 8 * part), sums[i][j]);
        }
      }
    }
  };
  const char* ahead = reinterpret_cast<const char*>(w) + kFewAhead;
  int64_t p = 0;
  for (; p + Order::kBlock <= depth; p += Order::kBlock, ahead += kColumns * 32) {
#pragma GCC unroll 4
    for (int line = 0; line < (kColumns + 1) / 2; ++line) __builtin_prefetch(ahead + line * 64, 0, 2);
    step(p, [](const scalar_t* at) __attribute__((always_inline)) { return load_elements(at); });
  }
  if (p < depth) {
    step(p, [n = depth - p](const scalar_t* at) __attribute__((always_inline)) { return load_some(at, n); });
  }
  for (int i = 0; i < kRows; ++i) add_pairs<kColumns>(sums[i], out + i * kFewColumns);
}

// All columns of w for kRows rows, as many at a time as there are registers for.
template <int kRows, typename scalar_t>
void few_columns(const float* x, int64_t width, const scalar_t* w, int64_t num_columns, int64_t depth, float* out) {
  constexpr int kColumns = kRows <= 2 ? 4 : 3;
  int64_t column = 0;
  for (; column + kColumns <= num_columns; column += kColumns) {
    few_tile<kRows, kColumns>(x, width, w + column * depth, depth, out + column);
  }
  for (; column < num_columns; ++column) few_tile<kRows, 1>(x, width, w + column * depth, depth, out + column);
}

// multiply_expert for at most kFewRows rows.
template <int kMatrices, typename scalar_t, typename Finish>
void multiply_few(const scalar_t* const* rows, int64_t num_rows, const scalar_t* weights, int64_t between,
                  int64_t begin, int64_t end, int64_t depth, float* scratch, const Finish& finish) {
  const int64_t width = SumOrder<scalar_t>::phase_steps(depth) * 8;
  for (int64_t i = 0; i < num_rows; ++i) widen_row(rows[i], depth, scratch + i * width);
  alignas(64) float products[kMatrices][kFewRows * kFewColumns];
  for (int64_t first = begin; first < end; first += kFewColumns) {
    const int64_t num_columns = std::min(kFewColumns, end - first);
    for (int m = 0; m < kMatrices; ++m) {
      const scalar_t* w = weights + m * between + first * depth;
      for (int64_t i = 0; i < num_rows; i += 4) {
        float* out = products[m] + i * kFewColumns;
        switch (num_rows - i) {
          case 1: few_columns<1>(scratch + i * width, width, w, num_columns, depth, out); break;
          case 2: few_columns<2>(scratch + i * width, width, w, num_columns, depth, out); break;
          case 3: few_columns<3>(scratch + i * width, width, w, num_columns, depth, out); break;
          default: few_columns<4>(scratch + i * width, width, w, num_columns, depth, out);
        }
      }
    }
    finish(0, num_rows, first, num_columns, products, kFewColumns);
  }
}
#endif
