// Dot products of rows with rows: out[i][j] = <a[i], b[j]>, both contiguous along the sum, so that weights are read as
// they lie in memory. Every dot product is summed in the same order, whatever tile it is computed in.

constexpr bool kDotProducts = GOSSAMER_VECTOR_BYTES == 64;  // whether the experts' products are computed this way

constexpr int kTile = 4;  // rows and columns of a tile: 16 sums stay in registers

// How scalar_t is held in a register, n < kStep of them with zeros behind, and how two registers are multiplied into
// sums.
template <typename scalar_t>
struct Dot {
  using Sum = typename Simd<scalar_t>::Vector;
  using Operand = Sum;
  static constexpr int64_t kStep = Simd<scalar_t>::kLanes;
  static Operand load(const scalar_t* p) { return Simd<scalar_t>::load(p); }
  static Operand load_part(const scalar_t* p, int64_t n) {
    scalar_t padded[kStep] = {};
    std::memcpy(padded, p, n * sizeof(scalar_t));
    return load(padded);
  }
  static void multiply_add(Sum& sum, Operand a, Operand b) { sum += a * b; }
};

#ifdef GOSSAMER_BF16_DOT
template <>
struct Dot<BFloat16> {
  using Sum = Simd<float>::Vector;
  using Operand = __m512i;
  static constexpr int64_t kStep = 32;
  static Operand load(const BFloat16* p) { return _mm512_loadu_si512(p); }
  static Operand load_part(const BFloat16* p, int64_t n) { return _mm512_maskz_loadu_epi16((1u << n) - 1, p); }
  static void multiply_add(Sum& sum, Operand a, Operand b) {
    sum = (Sum)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
  }
};
#endif

// One round of adding up lanes: vectors a and b become one, lo lanes of both plus hi lanes of both. Rounds 0 and 1 work
// within blocks of four lanes (cheap shuffles), after which lane j of every block belongs to vector j; the others add
// the blocks.
template <int kRound>
[[gnu::always_inline]] inline Simd<float>::Vector add_halves(Simd<float>::Vector a, Simd<float>::Vector b) {
  using Mask [[gnu::vector_size(GOSSAMER_VECTOR_BYTES)]] = int32_t;
  constexpr int kLanes = Simd<float>::kLanes, kBlocks = kLanes / 4;
  constexpr int kApart = kRound < 2 ? 2 : kRound == 2 ? kLanes / 2 : 4;
  Mask lo, hi;
  for (int l = 0; l < kLanes; ++l) {
    const int block = l / 4, lane = l % 4, half = block % std::max(kBlocks / 2, 1);
    if (kRound == 0) lo[l] = block * 4 + lane / 2 + lane % 2 * kLanes;
    if (kRound == 1) lo[l] = block * 4 + lane % 2 + lane / 2 * kLanes;
    if (kRound == 2) lo[l] = half * 4 + lane + 2 * block / kBlocks * kLanes;
    if (kRound == 3) lo[l] = half * 8 + lane + 2 * block / kBlocks * kLanes;
    hi[l] = lo[l] + kApart;
  }
  return __builtin_shuffle(a, b, lo) + __builtin_shuffle(a, b, hi);
}

// out[v] = sum of the lanes of sums[v], which are overwritten. One tree for any number of vectors, a power of two.
template <int kVectors, int kRound = 0>
[[gnu::always_inline]] inline void add_lanes(Simd<float>::Vector* sums, float* out) {
  if constexpr (4 << kRound <= 4 * Simd<float>::kLanes / 2) {
#pragma GCC unroll 16
    for (int v = 0; v < (kVectors + 1) / 2; ++v) {
      sums[v] = add_halves<kRound>(sums[2 * v], sums[std::min(2 * v + 1, kVectors - 1)]);
    }
    add_lanes<(kVectors + 1) / 2, kRound + 1>(sums, out);
  } else {
    std::memcpy(out, sums, kVectors * sizeof(sums[0]));
  }
}

template <int kVectors>
inline void add_lanes(Simd<double>::Vector* sums, double* out) {
  for (int v = 0; v < kVectors; ++v) {
    out[v] = 0;
    for (int64_t l = 0; l < Simd<double>::kLanes; ++l) out[v] += sums[v][l];
  }
}

// One step of a tile: all products of kRows operands of a and kTile operands of b.
template <int kRows, typename scalar_t, typename Load>
[[gnu::always_inline]] inline void multiply_step(const scalar_t* const* a, const scalar_t* const* b,
                                                 typename Dot<scalar_t>::Sum* sums, const Load& load) {
  typename Dot<scalar_t>::Operand columns[kTile];
#pragma GCC unroll 4
  for (int j = 0; j < kTile; ++j) columns[j] = load(b[j]);
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
    const typename Dot<scalar_t>::Operand row = load(a[i]);
#pragma GCC unroll 4
    for (int j = 0; j < kTile; ++j) Dot<scalar_t>::multiply_add(sums[i * kTile + j], row, columns[j]);
  }
}

// out[i * stride + j] = <a[i], b[j]>. Not inlined: the loop needs every register.
template <int kRows, typename scalar_t, typename acc_t>
[[gnu::noinline]] void dot_tile(const scalar_t* const* a, const scalar_t* const* b, int64_t depth, acc_t* out,
                                int64_t stride) {
  using D = Dot<scalar_t>;
  constexpr int kPadded = kRows == 3 ? 16 : kRows * kTile, kLanes = sizeof(typename D::Sum) / sizeof(acc_t);
  typename D::Sum sums[kPadded] = {};
  int64_t p = 0;
  for (; p + D::kStep <= depth; p += D::kStep) {
    multiply_step<kRows>(a, b, sums,
                         [p](const scalar_t* row) __attribute__((always_inline)) { return D::load(row + p); });
  }
  if (p < depth) {
    multiply_step<kRows>(a, b, sums, [p, depth](const scalar_t* row) __attribute__((always_inline)) {
      return D::load_part(row + p, depth - p);
    });
  }
  alignas(64) acc_t totals[std::max(kPadded, kLanes)];
  add_lanes<kPadded>(sums, totals);
  for (int i = 0; i < kRows; ++i) std::memcpy(out + i * stride, totals + i * kTile, kTile * sizeof(acc_t));
}

// num_rows <= kTile rows of a against num_columns <= kTile rows of b; whole tiles of out are written.
template <typename scalar_t, typename acc_t>
inline void dot_rows(const scalar_t* const* a, int64_t num_rows, const scalar_t* b, int64_t num_columns, int64_t depth,
                     acc_t* out, int64_t stride) {
  const scalar_t* columns[kTile];
  for (int64_t j = 0; j < kTile; ++j) columns[j] = b + std::min(j, num_columns - 1) * depth;
  switch (num_rows) {
    case 1: return dot_tile<1>(a, columns, depth, out, stride);
    case 2: return dot_tile<2>(a, columns, depth, out, stride);
    case 3: return dot_tile<3>(a, columns, depth, out, stride);
    default: return dot_tile<4>(a, columns, depth, out, stride);
  }
}

// Brings the weights of the next panel into the second-level cache, evenly spread over the tiles of this one.
struct PanelPrefetch {
  const char* from = nullptr;
  const char* end = nullptr;
  int64_t bytes_per_tile = 0;

  // The next `panel` rows start `shift` elements behind next (null: nothing to bring).
  template <typename scalar_t>
  void start(const scalar_t* next, int64_t shift, int64_t panel, int64_t row_bytes, int64_t num_rows) {
    if (next == nullptr) return;
    const int64_t num_tiles = (num_rows + kTile - 1) / kTile * (panel / kTile);
    from = reinterpret_cast<const char*>(next + shift);
    end = from + panel * row_bytes;
    bytes_per_tile = (panel * row_bytes / num_tiles + 63) / 64 * 64;
  }

  void step() {
    const char* stop = std::min(from + bytes_per_tile, end);
    for (; from < stop; from += 64) __builtin_prefetch(from, 0, 2);
  }
};

// A block of rows of a stays in the first-level cache, a panel of rows of b in the second.
constexpr int64_t kMaxBlock = 32, kBlockBytes = 32 << 10;
constexpr int64_t kMaxPanel = 64, kPanelBytes = 128 << 10;

inline int64_t rows_within(int64_t bytes, int64_t row_bytes, int64_t most) {
  return std::clamp<int64_t>(bytes / row_bytes / kTile * kTile, kTile, most);
}
