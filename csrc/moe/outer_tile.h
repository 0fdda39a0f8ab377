// Sums of outer products: out[i][c] = sum_s a[i, s] * b[s, c] over steps s, for sums that run across rows. Operands are
// packed into words that hold one element, or two consecutive ones where the processor multiplies pairs of bfloat16.

template <typename scalar_t>
struct Word {
  using Vector = typename Simd<scalar_t>::Vector;
  using Type = typename Simd<scalar_t>::acc_t;
  static constexpr int64_t kPack = 1;
  static constexpr int64_t kLanes = sizeof(Vector) / sizeof(Type);
  static Vector load(const Type* p) { return Simd<Type>::load(p); }
  static void multiply_add(Vector& sum, Type a, Vector b) { sum += a * b; }
  static Type pack(const scalar_t* first, const scalar_t*) { return static_cast<Type>(*first); }
  static void pack_lanes(const scalar_t* first, const scalar_t*, Type* out) {
    Simd<Type>::store(out, Simd<scalar_t>::load(first));
  }
};

#ifdef GOSSAMER_BF16_DOT
template <>
struct Word<BFloat16> {
  using Vector = Simd<float>::Vector;
  using Type = uint32_t;
  static constexpr int64_t kPack = 2;
  static constexpr int64_t kLanes = 16;
  static __m512i load(const Type* p) { return _mm512_loadu_si512(p); }
  static void multiply_add(Vector& sum, Type a, __m512i b) {
    sum = (Vector)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(static_cast<int>(a)), (__m512bh)b);
  }
  static uint32_t bits(const BFloat16* p) { return p ? p->x : 0; }
  static Type pack(const BFloat16* first, const BFloat16* second) { return bits(first) | bits(second) << 16; }
  static __m512i widen(const BFloat16* p) {
    return p ? _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))) : _mm512_setzero_si512();
  }
  static void pack_lanes(const BFloat16* first, const BFloat16* second, Type* out) {
    _mm512_storeu_si512(out, _mm512_or_si512(widen(first), _mm512_slli_epi32(widen(second), 16)));
  }
};
#endif

constexpr int kOuterRows = 6;
constexpr int kOuterVectors = GOSSAMER_VECTOR_BYTES == 64 ? 4 : 2;  // 24 sums in 32 registers, or 12 in 16

template <typename scalar_t>
constexpr int64_t kOuterColumns = kOuterVectors * Word<scalar_t>::kLanes;

// kPanels panels of words [num_steps, kWidth] of num_columns <= kPanels * kWidth columns, zero beyond; row(r) points to
// row r of the num_rows rows that are summed over.
template <typename scalar_t, int64_t kWidth, int kPanels = 1, typename Row>
inline void pack_columns(const Row& row, int64_t num_rows, int64_t num_columns, typename Word<scalar_t>::Type* words) {
  using W = Word<scalar_t>;
  const int64_t panel = (num_rows + W::kPack - 1) / W::kPack * kWidth;
  for (int64_t r = 0; r < num_rows; r += W::kPack, words += kWidth) {
    const scalar_t* first = row(r);
    const scalar_t* second = r + 1 < num_rows ? row(r + 1) : nullptr;
    const auto at = [&](int64_t c) { return words + c / kWidth * panel + c % kWidth; };
    int64_t c = 0;
    for (; c + W::kLanes <= num_columns; c += W::kLanes) {
      W::pack_lanes(first + c, second ? second + c : nullptr, at(c));
    }
    for (; c < num_columns; ++c) *at(c) = W::pack(first + c, second ? second + c : nullptr);
    for (; c < kPanels * kWidth; ++c) *at(c) = 0;
  }
}

// words [num_steps, kOuterRows]: num_rows <= kOuterRows rows of depth elements, step by step.
template <typename scalar_t, typename Row>
inline void pack_rows(const Row& row, int64_t num_rows, int64_t depth, typename Word<scalar_t>::Type* words) {
  using W = Word<scalar_t>;
  for (int64_t i = 0; i < num_rows; ++i) {
    const scalar_t* elements = row(i);
    for (int64_t p = 0; p < depth; p += W::kPack) {
      words[p / W::kPack * kOuterRows + i] = W::pack(elements + p, p + 1 < depth ? elements + p + 1 : nullptr);
    }
  }
}

// Row i of a starts at a + i * row_stride and goes on in strides of step_stride. Adds to out where accumulate is set.
template <int kRows, typename scalar_t, typename acc_t>
[[gnu::noinline]] void outer_tile(const typename Word<scalar_t>::Type* a, int64_t row_stride, int64_t step_stride,
                                  const typename Word<scalar_t>::Type* b, int64_t num_steps, bool accumulate,
                                  acc_t* out) {
  using W = Word<scalar_t>;
  using S = Simd<acc_t>;
  constexpr int64_t kColumns = kOuterColumns<scalar_t>;
  typename S::Vector sums[kRows][kOuterVectors];
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kOuterVectors; ++v) {
      sums[i][v] = accumulate ? S::load(out + i * kColumns + v * S::kLanes) : typename S::Vector{};
    }
  }
  for (int64_t s = 0; s < num_steps; ++s, a += step_stride, b += kColumns) {
    decltype(W::load(b)) columns[kOuterVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kOuterVectors; ++v) columns[v] = W::load(b + v * W::kLanes);
#pragma GCC unroll 6
    for (int i = 0; i < kRows; ++i) {
      const auto row = a[i * row_stride];
#pragma GCC unroll 4
      for (int v = 0; v < kOuterVectors; ++v) W::multiply_add(sums[i][v], row, columns[v]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kOuterVectors; ++v) S::store(out + i * kColumns + v * S::kLanes, sums[i][v]);
  }
}

template <typename scalar_t, typename acc_t>
inline void outer_rows(int64_t num_rows, const typename Word<scalar_t>::Type* a, int64_t row_stride,
                       int64_t step_stride, const typename Word<scalar_t>::Type* b, int64_t num_steps, bool accumulate,
                       acc_t* out) {
  switch (num_rows) {
    case 1: return outer_tile<1, scalar_t>(a, row_stride, step_stride, b, num_steps, accumulate, out);
    case 2: return outer_tile<2, scalar_t>(a, row_stride, step_stride, b, num_steps, accumulate, out);
    case 3: return outer_tile<3, scalar_t>(a, row_stride, step_stride, b, num_steps, accumulate, out);
    case 4: return outer_tile<4, scalar_t>(a, row_stride, step_stride, b, num_steps, accumulate, out);
    case 5: return outer_tile<5, scalar_t>(a, row_stride, step_stride, b, num_steps, accumulate, out);
    default: return outer_tile<6, scalar_t>(a, row_stride, step_stride, b, num_steps, accumulate, out);
  }
}
