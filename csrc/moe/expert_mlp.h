// out[t] = sum over routes p of token t of gate[p] * w_out[e] activation(w_in[e] x[t]), e the expert of p.
//
// Two passes. Threads divide columns, never experts or rows: the work is even however skewed the routing is, and every
// sum has one order for any number of threads and any other tokens in the batch. Rows are gathered while they are
// multiplied, and added to their token as they come out of the registers.

inline int64_t next_busy_expert(const int32_t* offsets, int64_t num_experts, int64_t e) {
  do ++e;
  while (e < num_experts && offsets[e] == offsets[e + 1]);
  return e;
}

template <typename acc_t>
using ProductBlock = acc_t[kMaxBlock * kMaxPanel];

// For one expert: all its rows against rows [begin, end) of kMatrices weight matrices that are `between` elements
// apart, read as they lie in memory. following: the weights of the expert whose turn is next, or null.
template <int kMatrices, typename scalar_t, typename acc_t, typename Finish>
void multiply_dots(const scalar_t* const* rows, int64_t num_rows, const scalar_t* weights, const scalar_t* following,
                   int64_t between, int64_t begin, int64_t end, int64_t depth, const Finish& finish) {
  const int64_t row_bytes = depth * sizeof(scalar_t);
  const int64_t panel = rows_within(kPanelBytes, row_bytes, kMaxPanel);
  const int64_t block = rows_within(kBlockBytes, row_bytes, kMaxBlock);
  alignas(64) ProductBlock<acc_t> products[kMatrices];
  for (int64_t first = begin; first < end; first += panel) {
    const int64_t last = std::min(first + panel, end);
    PanelPrefetch prefetch[kMatrices];
    const scalar_t* next = last < end ? weights + last * depth : following ? following + begin * depth : nullptr;
    for (int m = 0; m < kMatrices; ++m) prefetch[m].start(next, m * between, panel, row_bytes, num_rows);
    for (int64_t row_block = 0; row_block < num_rows; row_block += block) {
      const int64_t rows_end = std::min(row_block + block, num_rows);
      for (int64_t column = first; column < last; column += kTile) {
        const int64_t num_columns = std::min<int64_t>(kTile, last - column);
        for (int64_t row = row_block; row < rows_end; row += kTile) {
          const int64_t at = (row - row_block) * kMaxPanel + column - first;
          for (int m = 0; m < kMatrices; ++m) {
            prefetch[m].step();
            dot_rows(rows + row, std::min<int64_t>(kTile, rows_end - row), weights + m * between + column * depth,
                     num_columns, depth, products[m] + at, kMaxPanel);
          }
        }
      }
      finish(row_block, rows_end - row_block, first, last - first, products, kMaxPanel);
    }
  }
}

// For one expert: all its rows against rows [begin, end) of kMatrices weight matrices that are `between` elements
// apart. finish(first row, num_rows, first column, num_columns, products, stride) gets block after block of
// products[matrix][row * stride + column]. Dot products of many rows need the 32 registers of AVX-512: with 16 their
// sums leave the registers (60 % of the peak at best, and lanes to add up), where packed panels reach 85 to 95 %.
template <int kMatrices, typename scalar_t, typename acc_t, typename Finish>
void multiply_expert(const scalar_t* const* rows, int64_t num_rows, const scalar_t* weights, const scalar_t* following,
                     int64_t between, int64_t begin, int64_t end, int64_t depth, void* scratch, const Finish& finish) {
  if constexpr (kDotProducts) {
    multiply_dots<kMatrices, scalar_t, acc_t>(rows, num_rows, weights, following, between, begin, end, depth, finish);
  } else {
#if GOSSAMER_VECTOR_BYTES == 32
    if constexpr (SumOrder<scalar_t>::kFew) {
      if (num_rows <= kFewRows) {
        return multiply_few<kMatrices, scalar_t>(rows, num_rows, weights, between, begin, end, depth,
                                                 static_cast<float*>(scratch), finish);
      }
    }
#endif
    constexpr int64_t kColumns = kOuterColumns<scalar_t>;
    using Order = SumOrder<scalar_t>;
    const int64_t panel = Order::kPhases * Order::phase_stride(depth) * kColumns;
    const auto pack = [&](int64_t first, int64_t num_columns, acc_t* panels) {
      for (int m = 0; m < kMatrices; ++m) {
        pack_transposed<scalar_t, kColumns>(weights + m * between + first * depth, num_columns, depth,
                                            panels + m * panel);
      }
    };
    const auto finish_panel = [&](int64_t row, int64_t n, int64_t first, int64_t num_columns, const auto& products) {
      finish(row, n, first, num_columns, products, kColumns);
    };
    multiply_packed<kMatrices, Order, scalar_t, acc_t>([&](int64_t i) { return rows[i]; }, num_rows, depth, begin, end,
                                                       kColumns, static_cast<acc_t*>(scratch), pack, finish_panel);
  }
}

// Stores the first n lanes.
template <typename scalar_t, typename Vector>
inline void store_part(scalar_t* out, Vector v, int64_t n) {
  if (n == Simd<scalar_t>::kLanes) return Simd<scalar_t>::store(out, v);
  scalar_t padded[Simd<scalar_t>::kLanes];
  Simd<scalar_t>::store(padded, v);
  std::memcpy(out, padded, n * sizeof(scalar_t));
}

// Rounds a vector to scalar_t, as it will be read again.
template <typename scalar_t, typename Vector>
inline Vector rounded(Vector v) {
  scalar_t stored[Simd<scalar_t>::kLanes];
  Simd<scalar_t>::store(stored, v);
  return Simd<scalar_t>::load(stored);
}

// activated = activation(hidden) over one row of a block of products, which starts at `row`.
template <int kMatrices, typename scalar_t, typename Products>
inline void activate_row(const ExpertArgs<scalar_t>& args, const Products& products, int64_t row, int64_t num_columns,
                         scalar_t* hidden, scalar_t* activated) {
  using acc_t = typename ExpertArgs<scalar_t>::acc_t;
  using S = Simd<acc_t>;
  for (int64_t c = 0; c < num_columns; c += S::kLanes) {
    const int64_t n = std::min<int64_t>(S::kLanes, num_columns - c);
    typename S::Vector h[kMatrices];
    for (int m = 0; m < kMatrices; ++m) {
      h[m] = rounded<scalar_t>(S::load(products[m] + row + c));
      if (hidden) store_part(hidden + m * args.d_ff + c, h[m], n);
    }
    store_part(activated + c, activate(args.activation, h[0], h[kMatrices - 1], args.limit), n);
  }
}

// First pass: hidden and activated, columns [begin, end) of d_ff. rows: scratch for the pointers of one expert;
// scratch: product_words.
template <int kMatrices, typename scalar_t>
void expert_hidden_of(const ExpertArgs<scalar_t>& args, const scalar_t** rows, void* scratch, int64_t begin,
                      int64_t end) {
  using acc_t = typename ExpertArgs<scalar_t>::acc_t;
  const int64_t d_hidden = args.d_hidden(), size = d_hidden * args.d_model;
  int64_t e = next_busy_expert(args.offsets, args.num_experts, -1);
  while (e < args.num_experts) {
    const int64_t next = next_busy_expert(args.offsets, args.num_experts, e);
    const int64_t first = args.offsets[e], num_rows = args.offsets[e + 1] - first;
    for (int64_t i = 0; i < num_rows; ++i) rows[i] = args.x + args.token(first + i) * args.d_model;
    const auto finish = [&](int64_t row, int64_t block_rows, int64_t column, int64_t num_columns, const auto& products,
                            int64_t stride) {
      for (int64_t i = 0; i < block_rows; ++i) {
        const int64_t p = first + row + i;
        scalar_t* hidden = args.hidden ? args.hidden + p * d_hidden + column : nullptr;
        activate_row<kMatrices>(args, products, i * stride, num_columns, hidden,
                                args.activated + p * args.d_ff + column);
      }
    };
    multiply_expert<kMatrices, scalar_t, acc_t>(rows, num_rows, args.w_in + e * size,
                                                next < args.num_experts ? args.w_in + next * size : nullptr,
                                                args.d_ff * args.d_model, begin, end, args.d_model, scratch, finish);
    e = next;
  }
}

template <typename scalar_t>
void expert_hidden(const ExpertArgs<scalar_t>& args, const scalar_t** rows, void* scratch, int64_t begin, int64_t end) {
  if (args.activation == Activation::kSwiglu) {
    expert_hidden_of<2>(args, rows, scratch, begin, end);
  } else {
    expert_hidden_of<1>(args, rows, scratch, begin, end);
  }
}

// out = sums rounded, columns [begin, end).
template <typename scalar_t>
inline void round_sums(const ExpertArgs<scalar_t>& args, int64_t begin, int64_t end) {
  using S = Simd<typename ExpertArgs<scalar_t>::acc_t>;
  for (int64_t t = 0; t < args.num_tokens; ++t) {
    int64_t i = t * args.d_model + begin;
    const int64_t last = t * args.d_model + end;
    for (; i + S::kLanes <= last; i += S::kLanes) Simd<scalar_t>::store(args.out + i, S::load(args.sums + i));
    for (; i < last; ++i) args.out[i] = static_cast<scalar_t>(args.sums[i]);
  }
}

// Second pass: sums[token] += gate * w_out activated, columns [begin, end) of d_model, experts in order.
template <typename scalar_t>
void expert_output(const ExpertArgs<scalar_t>& args, const scalar_t** rows, void* scratch, int64_t begin, int64_t end) {
  using acc_t = typename ExpertArgs<scalar_t>::acc_t;
  const int64_t size = args.d_model * args.d_ff;
  int64_t e = next_busy_expert(args.offsets, args.num_experts, -1);
  while (e < args.num_experts) {
    const int64_t next = next_busy_expert(args.offsets, args.num_experts, e);
    const int64_t first = args.offsets[e], num_rows = args.offsets[e + 1] - first;
    for (int64_t i = 0; i < num_rows; ++i) rows[i] = args.activated + (first + i) * args.d_ff;
    const auto finish = [&](int64_t row, int64_t block_rows, int64_t column, int64_t num_columns, const auto& products,
                            int64_t stride) {
      for (int64_t i = 0; i < block_rows; ++i) {
        const acc_t gate = args.gate(first + row + i);
        acc_t* out = args.sums + args.token(first + row + i) * args.d_model + column;
        for (int64_t c = 0; c < num_columns; ++c) out[c] += gate * products[0][i * stride + c];
      }
    };
    multiply_expert<1, scalar_t, acc_t>(rows, num_rows, args.w_out + e * size,
                                        next < args.num_experts ? args.w_out + next * size : nullptr, 0, begin, end,
                                        args.d_ff, scratch, finish);
    e = next;
  }
  round_sums(args, begin, end);
}
