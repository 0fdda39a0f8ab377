// What both passes of drew_gcn do to rows [begin, end) of one hop. A block of rows is gathered, multiplied and summed
// up while it is in the first-level cache; blocks have rows of `padded` elements, a whole number of registers.

// c[m, :] (+)= sum over n < depth of a[m * a_row + n * a_step] * b[n * b_row + :], kRows rows of kVectors registers.
template <int kRows, int kVectors, typename scalar_t>
inline void product_tile(const scalar_t* a, int64_t a_row, int64_t a_step, const scalar_t* b, int64_t b_row,
                         int64_t depth, scalar_t* c, int64_t c_row, bool add) {
  using S = Simd<scalar_t>;
  using Vector = typename S::Vector;
  Vector sum[kRows][kVectors] = {};
  for (int64_t n = 0; n < depth; ++n) {
    Vector right[kVectors];
    for (int v = 0; v < kVectors; ++v) right[v] = S::load(b + n * b_row + v * S::kLanes);
    for (int m = 0; m < kRows; ++m) {
      const scalar_t left = a[m * a_row + n * a_step];
      for (int v = 0; v < kVectors; ++v) sum[m][v] += left * right[v];
    }
  }
  for (int m = 0; m < kRows; ++m) {
    for (int v = 0; v < kVectors; ++v) {
      scalar_t* p = c + m * c_row + v * S::kLanes;
      S::store(p, add ? S::load(p) + sum[m][v] : sum[m][v]);
    }
  }
}

template <int kVectors, typename scalar_t>
inline void product_columns(const scalar_t* a, int64_t a_row, int64_t a_step, const scalar_t* b, int64_t b_row,
                            int64_t depth, scalar_t* c, int64_t c_row, int64_t rows, bool add) {
  constexpr int kRows = 6;  // 12 or 24 sums: as many as the registers hold, enough to hide how long one takes
  int64_t m = 0;
  const auto tile = [&](auto height) {
    constexpr int kHeight = decltype(height)::value;
    for (; m + kHeight <= rows; m += kHeight) {
      product_tile<kHeight, kVectors>(a + m * a_row, a_row, a_step, b, b_row, depth, c + m * c_row, c_row, add);
    }
  };
  tile(std::integral_constant<int, kRows>{});
  tile(std::integral_constant<int, 4>{});
  tile(std::integral_constant<int, 2>{});
  tile(std::integral_constant<int, 1>{});
}

// The same for `rows` rows of `padded` columns.
template <typename scalar_t>
inline void product(const scalar_t* a, int64_t a_row, int64_t a_step, const scalar_t* b, int64_t b_row, int64_t depth,
                    scalar_t* c, int64_t c_row, int64_t rows, int64_t padded, bool add) {
  constexpr int kVectors = GOSSAMER_VECTOR_BYTES == 64 ? 4 : 2;
  constexpr int64_t kLanes = Simd<scalar_t>::kLanes;
  int64_t f = 0;
  for (; f + kVectors * kLanes <= padded; f += kVectors * kLanes) {
    product_columns<kVectors>(a, a_row, a_step, b + f, b_row, depth, c + f, c_row, rows, add);
  }
  for (; f + 2 * kLanes <= padded; f += 2 * kLanes) {
    product_columns<2>(a, a_row, a_step, b + f, b_row, depth, c + f, c_row, rows, add);
  }
  for (; f < padded; f += kLanes) product_columns<1>(a, a_row, a_step, b + f, b_row, depth, c + f, c_row, rows, add);
}

// One register of a row that ends at num_features (zeros behind it), and back.
template <typename scalar_t>
inline typename Simd<scalar_t>::Vector load_row(const scalar_t* row, int64_t f, int64_t num_features) {
  using S = Simd<scalar_t>;
  if (f + S::kLanes <= num_features) return S::load(row + f);
  typename S::Vector v;
  load_partial(row + f, std::max<int64_t>(num_features - f, 0), &v);
  return v;
}

template <typename scalar_t>
inline void store_row(scalar_t* row, int64_t f, int64_t num_features, typename Simd<scalar_t>::Vector v) {
  using S = Simd<scalar_t>;
  if (f + S::kLanes <= num_features) return S::store(row + f, v);
  store_partial(row + f, std::max<int64_t>(num_features - f, 0), &v);
}

// out[:] = scale[i] * (sum over edges of row i of scale[j] * x[j, :] + scale[i] * x[i, :]), the last term where the hop
// has self loops; kScaled: x has the inner scales already.
template <int kVectors, bool kScaled, typename scalar_t, typename index_t>
inline void gather_columns(const DrewHop<scalar_t, index_t>& hop, const scalar_t* x, int64_t num_features, int64_t row,
                           int64_t f, scalar_t* out) {
  using S = Simd<scalar_t>;
  typename S::Vector sum[kVectors] = {};
  const auto add = [&](int64_t source) __attribute__((always_inline)) {
    const scalar_t scale = kScaled ? scalar_t(1) : hop.scale[source];
    for (int v = 0; v < kVectors; ++v) {
      const scalar_t* from = x + source * num_features;
      const auto value = kVectors > 1 ? S::load(from + f + v * S::kLanes) : load_row(from, f, num_features);
      if constexpr (kScaled) {
        sum[v] += value;
      } else {
        sum[v] += scale * value;
      }
    }
  };
  if (hop.self_loops) add(row);
  for (int64_t e = hop.rowptr[row]; e < hop.rowptr[row + 1]; ++e) add(hop.col[e]);
  for (int v = 0; v < kVectors; ++v) S::store(out + f + v * S::kLanes, hop.scale[row] * sum[v]);
}

template <bool kScaled, typename scalar_t, typename index_t>
inline void gather_block(const DrewHop<scalar_t, index_t>& hop, const scalar_t* x, int64_t num_features, int64_t padded,
                         int64_t begin, int64_t end, scalar_t* block) {
  constexpr int64_t kLanes = Simd<scalar_t>::kLanes;
  constexpr int kWide = GOSSAMER_VECTOR_BYTES == 64 ? 4 : 8;  // 64 floats: a row's edges are walked once
  for (int64_t row = begin; row < end; ++row) {
    scalar_t* out = block + (row - begin) * padded;
    int64_t f = 0;
    for (; f + kWide * kLanes <= num_features; f += kWide * kLanes) {
      gather_columns<kWide, kScaled>(hop, x, num_features, row, f, out);
    }
    for (; f < padded; f += kLanes) gather_columns<1, kScaled>(hop, x, num_features, row, f, out);
  }
}

// Adds the rows of a block to a running mean and sum of squared differences (Chan, Golub and LeVeque 1983).
template <typename scalar_t>
inline void add_moments(const scalar_t* block, int64_t padded, int64_t rows, int64_t rows_before, double* mean,
                        double* squares) {
  using S = Simd<scalar_t>;
  constexpr int kVectors = kPad / S::kLanes;  // side by side, as one sum alone would wait for itself
  const double share = static_cast<double>(rows) / static_cast<double>(rows_before + rows);
  for (int64_t f = 0; f < padded; f += kPad) {
    typename S::Vector sum[kVectors] = {}, square[kVectors] = {}, center[kVectors];
    for (int64_t r = 0; r < rows; ++r) {
      for (int v = 0; v < kVectors; ++v) sum[v] += S::load(block + r * padded + f + v * S::kLanes);
    }
    for (int v = 0; v < kVectors; ++v) center[v] = sum[v] / static_cast<scalar_t>(rows);
    for (int64_t r = 0; r < rows; ++r) {
      for (int v = 0; v < kVectors; ++v) {
        const auto difference = S::load(block + r * padded + f + v * S::kLanes) - center[v];
        square[v] += difference * difference;
      }
    }
    for (int64_t i = 0; i < kPad; ++i) {
      const double delta = sum[i / S::kLanes][i % S::kLanes] / static_cast<double>(rows) - mean[f + i];
      mean[f + i] += delta * share;
      // center is rounded: the squares around it exceed those around the mean by less than their own rounding
      squares[f + i] += square[i / S::kLanes][i % S::kLanes] + delta * delta * rows_before * share;
    }
  }
}

// Writes the messages of a hop; moments [2, padded] become their means and sums of squared differences (null: not
// wanted).
template <typename scalar_t, typename index_t>
void drew_messages(const DrewHop<scalar_t, index_t>& hop, int64_t num_features, int64_t padded, double* moments,
                   int64_t begin, int64_t end) {
  using S = Simd<scalar_t>;
  const bool whole = num_features == padded;  // then rows need no padding, and blocks are written in place
  std::vector<scalar_t> buffer(2 * kDrewBlockRows * padded);
  scalar_t* gathered = buffer.data();
  for (int64_t row = begin; row < end; row += kDrewBlockRows) {
    const int64_t rows = std::min(kDrewBlockRows, end - row);
    scalar_t* block = whole ? hop.message + row * padded : gathered + kDrewBlockRows * padded;
    gather_block<false>(hop, hop.state, num_features, padded, row, row + rows, gathered);
    product(gathered, padded, 1, hop.weight, padded, num_features, block, padded, rows, padded, false);
    if (moments) add_moments(block, padded, rows, row - begin, moments, moments + padded);
    for (int64_t r = 0; !whole && r < rows; ++r) {
      for (int64_t f = 0; f < padded; f += S::kLanes) {
        store_row(hop.message + (row + r) * num_features, f, num_features, S::load(block + r * padded + f));
      }
    }
  }
}

// The register at feature f of a message behind its norm.
template <typename scalar_t, typename index_t>
inline typename Simd<scalar_t>::Vector normed(const DrewHop<scalar_t, index_t>& hop,
                                              typename Simd<scalar_t>::Vector message, int64_t f) {
  using S = Simd<scalar_t>;
  return (message - S::load(hop.mean + f)) * S::load(hop.factor + f) + S::load(hop.beta + f);
}
