// Rows as columns of words of one element, for sums along the rows where the lanes of a vector are rows.

#if GOSSAMER_VECTOR_BYTES == 32
// rows[i][j] becomes rows[j][i].
[[gnu::always_inline]] inline void transpose_words(__m256* rows) {
  __m256 pairs[8], fours[8];
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    const int half = i / 2 * 4, from = half + i % 2, to = half + i % 2 * 2;
    fours[to] = _mm256_shuffle_ps(pairs[from], pairs[from + 2], 0x44);
    fours[to + 1] = _mm256_shuffle_ps(pairs[from], pairs[from + 2], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    rows[i] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x20);
    rows[i + 4] = _mm256_permute2f128_ps(fours[i], fours[i + 4], 0x31);
  }
}

// words[SumOrder::step(p) * stride + r] = rows[r][p] for eight rows of float or bfloat16 and as many elements p < depth
// as come in whole registers, whose words belong to one sum each; returns their number. The line `ahead` elements
// behind each row is brought into the cache.
template <typename scalar_t>
inline int64_t transpose_eight(const scalar_t* const* rows, int64_t depth, int64_t ahead, float* words,
                               int64_t stride) {
  constexpr int64_t kElements = 32 / sizeof(scalar_t);
  [[maybe_unused]] const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000));
  const int64_t phase = SumOrder<scalar_t>::phase_stride(depth) * stride;
  int64_t p = 0;
  for (; p + kElements <= depth; p += kElements, words += kElements / 8 * stride) {
    __m256 columns[8];
#pragma GCC unroll 8
    for (int r = 0; r < 8; ++r) {
      __builtin_prefetch(rows[r] + p + ahead, 0, 2);
      columns[r] = _mm256_loadu_ps(reinterpret_cast<const float*>(rows[r] + p));
    }
    transpose_words(columns);
#pragma GCC unroll 8
    for (int s = 0; s < 8; ++s) {
      float* out = words + s * phase;
      if constexpr (kElements == 8) {
        _mm256_storeu_ps(out, columns[s]);
      } else {  // a word is a pair
        const __m256i pair = _mm256_castps_si256(columns[s]);
        _mm256_storeu_ps(out, _mm256_castsi256_ps(_mm256_slli_epi32(pair, 16)));
        _mm256_storeu_ps(out + stride, _mm256_castsi256_ps(_mm256_and_si256(pair, upper)));
      }
    }
  }
  return p;
}
#endif

// words [num_steps, kWidth], in the steps of SumOrder: words[step(p)][c] = rows[min(c, num_columns - 1)][p] of a matrix
// [num_columns, depth], zero beyond.
template <typename scalar_t, int64_t kWidth>
inline void pack_transposed(const scalar_t* rows, int64_t num_columns, int64_t depth,
                            typename Simd<scalar_t>::acc_t* words) {
  using acc_t = typename Simd<scalar_t>::acc_t;
  const scalar_t* columns[kWidth];
  for (int64_t c = 0; c < kWidth; ++c) columns[c] = rows + std::min(c, num_columns - 1) * depth;
  int64_t done = 0;
#if GOSSAMER_VECTOR_BYTES == 32
  if constexpr (!std::is_same_v<scalar_t, double>) {
    for (int64_t c = 0; c < kWidth; c += 8)
      done = transpose_eight(columns + c, depth, kWidth * depth, words + c, kWidth);
  }
#endif
  using Order = SumOrder<scalar_t>;
  const int64_t stride = Order::phase_stride(depth);
  for (int64_t p = done; p < Order::kPhases * Order::phase_steps(depth); ++p) {
    acc_t* out = words + Order::step(p, stride) * kWidth;
    for (int64_t c = 0; c < kWidth; ++c) out[c] = p < depth ? static_cast<acc_t>(columns[c][p]) : acc_t(0);
  }
}
