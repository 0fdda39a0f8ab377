// out[i, f] = max over edges rowptr[i] <= e < rowptr[i + 1] of weight[e] * x[col[e], f] (min if kMinimum), 0 in empty
// rows, and arg[i, f] = e - rowptr[i] of the first edge that attains it, -1 in empty rows. A NaN wins over every
// number. For rows i in [begin, end).
//   x [num_sources, num_features], out and arg [num_rows, num_features]; weight may be null: 1.

// Integers of the width of an accumulator's lane, and their way into int32.
template <typename scalar_t>
struct ArgSimd {
  using S = Simd<scalar_t>;
  using lane_t = std::conditional_t<std::is_same_v<typename S::acc_t, double>, int64_t, int32_t>;
  using Vector [[gnu::vector_size(GOSSAMER_VECTOR_BYTES)]] = lane_t;
  using Narrow [[gnu::vector_size(S::kLanes * sizeof(int32_t))]] = int32_t;

  static Vector load(const int32_t* p) {
    Narrow narrow;
    std::memcpy(&narrow, p, sizeof(narrow));
    return __builtin_convertvector(narrow, Vector);
  }
  static void store(int32_t* p, Vector v) {
    const Narrow narrow = __builtin_convertvector(v, Narrow);
    std::memcpy(p, &narrow, sizeof(narrow));
  }
};

// One row, kVectors vectors from feature f on.
template <int kVectors, bool kMinimum, typename scalar_t, typename index_t>
inline void extremum_block(const ExtremumArgs<scalar_t, index_t>& args, int64_t row, int64_t f) {
  using S = Simd<scalar_t>;
  using A = ArgSimd<scalar_t>;
  typename S::Vector best[kVectors] = {};
  typename A::Vector arg[kVectors] = {};
  const int64_t first = args.rowptr[row], last = args.rowptr[args.num_rows] - 1;
  for (int64_t e = first; e < args.rowptr[row + 1]; ++e) {
    const scalar_t* ahead = args.x + args.col[std::min(e + 16, last)] * args.num_features + f;
    for (int64_t i = 0; i < kVectors * S::kLanes; i += 64 / sizeof(scalar_t)) __builtin_prefetch(ahead + i);
    const scalar_t* p = args.x + args.col[e] * args.num_features + f;
    const typename S::acc_t scale = args.weight ? args.weight[e] : 1;
    for (int v = 0; v < kVectors; ++v) {
      const typename S::Vector value = scale * S::load(p + v * S::kLanes);
      const auto worse = kMinimum ? value >= best[v] : value <= best[v];
      const auto take = (~worse & (best[v] == best[v])) | (e == first ? -1 : 0);
      best[v] = take ? value : best[v];
      arg[v] = take ? typename A::Vector{} + static_cast<typename A::lane_t>(e - first) : arg[v];
    }
  }
  const bool empty = first == args.rowptr[row + 1];
  for (int v = 0; v < kVectors; ++v) {
    const int64_t i = row * args.num_features + f + v * S::kLanes;
    S::store(args.out + i, best[v]);
    A::store(args.arg + i, empty ? typename A::Vector{} - 1 : arg[v]);
  }
}

// One row that is narrower than a vector.
template <bool kMinimum, typename scalar_t, typename index_t>
inline void extremum_narrow(const ExtremumArgs<scalar_t, index_t>& args, int64_t row) {
  using acc_t = typename Simd<scalar_t>::acc_t;
  const int64_t first = args.rowptr[row], end = args.rowptr[row + 1];
  for (int64_t f = 0; f < args.num_features; ++f) {
    acc_t best = 0;
    int32_t arg = -1;
    for (int64_t e = first; e < end; ++e) {
      const acc_t scale = args.weight ? args.weight[e] : 1;
      const acc_t value = scale * static_cast<acc_t>(args.x[args.col[e] * args.num_features + f]);
      const bool worse = kMinimum ? value >= best : value <= best;
      if (e == first || (!worse && best == best)) {
        best = value;
        arg = static_cast<int32_t>(e - first);
      }
    }
    args.out[row * args.num_features + f] = static_cast<scalar_t>(best);
    args.arg[row * args.num_features + f] = arg;
  }
}

template <bool kMinimum, typename scalar_t, typename index_t>
void extremum_rows(const ExtremumArgs<scalar_t, index_t>& args, int64_t begin, int64_t end) {
  constexpr int64_t kLanes = Simd<scalar_t>::kLanes;
  for (int64_t row = begin; row < end; ++row) {
    if (args.num_features < kLanes) {
      extremum_narrow<kMinimum>(args, row);
      continue;
    }
    int64_t f = 0;
    for (; f + 4 * kLanes <= args.num_features; f += 4 * kLanes) extremum_block<4, kMinimum>(args, row, f);
    for (; f + kLanes <= args.num_features; f += kLanes) extremum_block<1, kMinimum>(args, row, f);
    if (f < args.num_features) extremum_block<1, kMinimum>(args, row, args.num_features - kLanes);
  }
}

template <typename scalar_t, typename index_t>
void extremum(const ExtremumArgs<scalar_t, index_t>& args, int64_t begin, int64_t end) {
  (args.minimum ? extremum_rows<true, scalar_t, index_t> : extremum_rows<false, scalar_t, index_t>)(args, begin, end);
}

// grad_x[j, f] = sum over edges e from j of weight[e] * grad[i, f] where arg[i, f] says that e won, with i the row of
// e. Written as a gather along the transposed graph, so that no two threads write to one node; for nodes j in [begin,
// end).
//   grad and arg [num_rows, num_features], grad_x [num_sources, num_features]
//   rowptr_t [num_sources + 1], col_t and edge_ids_t [num_edges]: row and position in the graph of each edge from j
template <typename scalar_t, typename index_t>
inline void add_won(const ExtremumBackwardArgs<scalar_t, index_t>& args, int64_t t, Accumulator<scalar_t>* sum) {
  using S = Simd<scalar_t>;
  using A = ArgSimd<scalar_t>;
  const int64_t row = args.col_t[t], e = args.edge_ids_t[t], offset = e - args.rowptr[row];
  const Accumulator<scalar_t> scale = args.weight ? args.weight[e] : 1;
  const scalar_t* grad = args.grad + row * args.num_features;
  const int32_t* arg = args.arg + row * args.num_features;
  int64_t f = 0;
  for (; f + S::kLanes <= args.num_features; f += S::kLanes) {
    const typename S::Vector value = scale * S::load(grad + f);
    const auto won = A::load(arg + f) == static_cast<typename A::lane_t>(offset);
    const typename S::Vector old = Simd<Accumulator<scalar_t>>::load(sum + f);
    Simd<Accumulator<scalar_t>>::store(sum + f, won ? old + value : old);
  }
  for (; f < args.num_features; ++f) {
    if (arg[f] == offset) sum[f] += scale * static_cast<Accumulator<scalar_t>>(grad[f]);
  }
}

template <typename scalar_t, typename index_t>
void extremum_backward(const ExtremumBackwardArgs<scalar_t, index_t>& args, Accumulator<scalar_t>* sum, int64_t begin,
                       int64_t end) {
  const int64_t last = args.rowptr_t[end] - 1;
  for (int64_t node = begin; node < end; ++node) {
    std::fill_n(sum, args.num_features, Accumulator<scalar_t>(0));
    for (int64_t t = args.rowptr_t[node]; t < args.rowptr_t[node + 1]; ++t) {
      const int64_t ahead = args.col_t[std::min(t + 8, last)] * args.num_features;
      for (int64_t f = 0; f < args.num_features; f += 16) {
        __builtin_prefetch(args.grad + ahead + f);
        __builtin_prefetch(args.arg + ahead + f);
      }
      add_won(args, t, sum);
    }
    scalar_t* out = args.grad_x + node * args.num_features;
    for (int64_t f = 0; f < args.num_features; ++f) out[f] = static_cast<scalar_t>(sum[f]);
  }
}

// grad_weight[e] = sum of grad[i, f] * x[col[e], f] over the features f that edge e of row i won, for rows in [begin,
// end).
template <typename scalar_t, typename index_t>
void extremum_backward_weight(const ExtremumBackwardWeightArgs<scalar_t, index_t>& args, int64_t begin, int64_t end) {
  using acc_t = Accumulator<scalar_t>;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = args.rowptr[row];
    std::fill(args.grad_weight + first, args.grad_weight + args.rowptr[row + 1], acc_t(0));
    if (first == args.rowptr[row + 1]) continue;
    for (int64_t f = 0; f < args.num_features; ++f) {
      const int64_t i = row * args.num_features + f, e = first + args.arg[i];
      const scalar_t* p = args.x + args.col[e] * args.num_features + f;
      args.grad_weight[e] += static_cast<acc_t>(args.grad[i]) * static_cast<acc_t>(*p);
    }
  }
}
