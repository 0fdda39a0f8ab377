// Sums of outer products: out[i][c] = sum_s a[i, s] * b[s, c] over steps s, for sums that run across rows. Operands are
// packed into words that hold one element, or two consecutive ones where the processor multiplies pairs of bfloat16.

template <typename scalar_t>
struct Word {
  using Vector = typename Simd<scalar_t>::Vector;
  using Type = typename Simd<scalar_t>::acc_t;
  static constexpr int64_t kPack = 1;
  static constexpr int64_t kLanes = sizeof(Vector) / sizeof(Type);
  static Vector load(const Type* p) { return Simd<Type>::load(p); }
  static void multiply_add(Vector& sum, Type a, Vector b) {
#if GOSSAMER_VECTOR_BYTES == 32  // rounded once, with any options of the compiler, as few_rows.h does
    if constexpr (std::is_same_v<Type, float>) {
      sum = (Vector)_mm256_fmadd_ps(_mm256_set1_ps(a), (__m256)b, (__m256)sum);
      return;
    }
#endif
    sum += a * b;
  }
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

// Products as one sum each, step after step; SumOrder is the other way.
template <typename scalar_t>
struct OneSum {
  static constexpr int64_t kPhases = 1, kPack = Word<scalar_t>::kPack;
  static int64_t phase_steps(int64_t depth) { return (depth + kPack - 1) / kPack; }
  static int64_t phase_stride(int64_t depth) { return phase_steps(depth); }
  static int64_t step(int64_t p, int64_t) { return p / kPack; }
};

// words [num_steps, kOuterRows]: num_rows <= kOuterRows rows of depth elements, in the steps of Order, zero beyond.
template <typename scalar_t, typename Order, typename Row>
inline void pack_rows(const Row& row, int64_t num_rows, int64_t depth, typename Word<scalar_t>::Type* words) {
  using W = Word<scalar_t>;
  const int64_t stride = Order::phase_stride(depth), end = Order::kPhases * Order::phase_steps(depth) * W::kPack;
  for (int64_t i = 0; i < num_rows; ++i) {
    const scalar_t* elements = row(i);
    const auto at = [&](int64_t p) -> auto& { return words[Order::step(p, stride) * kOuterRows + i]; };
    int64_t p = 0;
    for (; p < depth; p += W::kPack) at(p) = W::pack(elements + p, p + 1 < depth ? elements + p + 1 : nullptr);
    for (; p < end; p += W::kPack) at(p) = 0;
  }
}

// Adds num_steps outer products to the sums of a tile. Row i of a starts at a + i * row_stride and goes on in strides
// of step_stride.
template <int kRows, typename scalar_t, typename Vector>
[[gnu::always_inline]] inline void add_outer_products(const typename Word<scalar_t>::Type* a, int64_t row_stride,
                                                      int64_t step_stride, const typename Word<scalar_t>::Type* b,
                                                      int64_t num_steps, Vector (&sums)[kRows][kOuterVectors]) {
  using W = Word<scalar_t>;
  for (int64_t s = 0; s < num_steps; ++s, a += step_stride, b += kOuterColumns<scalar_t>) {
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
}

// f(sum, its place) for every vector of a tile [kRows, kOuterColumns].
template <int kRows, typename scalar_t, typename acc_t, typename Vector, typename Function>
[[gnu::always_inline]] inline void for_sums(Vector (&sums)[kRows][kOuterVectors], acc_t* out, const Function& f) {
#pragma GCC unroll 6
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kOuterVectors; ++v) f(sums[i][v], out + i * kOuterColumns<scalar_t> + v * Simd<acc_t>::kLanes);
  }
}

// As add_outer_products; adds to out where accumulate is set.
template <int kRows, typename scalar_t, typename acc_t>
[[gnu::noinline]] void outer_tile(const typename Word<scalar_t>::Type* a, int64_t row_stride, int64_t step_stride,
                                  const typename Word<scalar_t>::Type* b, int64_t num_steps, bool accumulate,
                                  acc_t* out) {
  using S = Simd<acc_t>;
  using Vector = typename S::Vector;
  Vector sums[kRows][kOuterVectors];
  for_sums<kRows, scalar_t>(sums, out, [&](Vector& sum, acc_t* at) { sum = accumulate ? S::load(at) : Vector{}; });
  add_outer_products<kRows, scalar_t>(a, row_stride, step_stride, b, num_steps, sums);
  for_sums<kRows, scalar_t>(sums, out, [](Vector& sum, acc_t* at) { S::store(at, sum); });
}

// out = kPhases sums of phase_steps outer products each, added in pairs as add_pairs adds lanes.
template <int kRows, int64_t kPhases, typename scalar_t, typename acc_t>
[[gnu::noinline]] void outer_phases(const typename Word<scalar_t>::Type* a, const typename Word<scalar_t>::Type* b,
                                    int64_t phase_steps, int64_t phase_stride, acc_t* out) {
  using S = Simd<acc_t>;
  using Vector = typename S::Vector;
  constexpr int64_t kColumns = kOuterColumns<scalar_t>;
  alignas(64) acc_t waiting[3][kRows * kColumns];  // sums of one, two and four phases
  for (int64_t phase = 0; phase < kPhases; ++phase, a += phase_stride * kOuterRows, b += phase_stride * kColumns) {
    Vector sums[kRows][kOuterVectors] = {};
    add_outer_products<kRows, scalar_t>(a, 1, kOuterRows, b, phase_steps, sums);
    int level = 0;
    for (; phase >> level & 1; ++level) {
      for_sums<kRows, scalar_t>(sums, waiting[level], [](Vector& sum, acc_t* at) { sum = S::load(at) + sum; });
    }
    for_sums<kRows, scalar_t>(sums, phase + 1 < kPhases ? waiting[level] : out,
                              [](Vector& sum, acc_t* at) { S::store(at, sum); });
  }
}

// f(the number of rows as a constant), num_rows in [1, kOuterRows].
template <typename Function>
inline void with_rows(int64_t num_rows, const Function& f) {
  switch (num_rows) {
    case 1: return f(std::integral_constant<int, 1>{});
    case 2: return f(std::integral_constant<int, 2>{});
    case 3: return f(std::integral_constant<int, 3>{});
    case 4: return f(std::integral_constant<int, 4>{});
    case 5: return f(std::integral_constant<int, 5>{});
    default: return f(std::integral_constant<int, 6>{});
  }
}

template <typename scalar_t, typename acc_t>
inline void outer_rows(int64_t num_rows, const typename Word<scalar_t>::Type* a, int64_t row_stride,
                       int64_t step_stride, const typename Word<scalar_t>::Type* b, int64_t num_steps, bool accumulate,
                       acc_t* out) {
  with_rows(num_rows, [&](auto rows) {
    outer_tile<decltype(rows)::value, scalar_t>(a, row_stride, step_stride, b, num_steps, accumulate, out);
  });
}
