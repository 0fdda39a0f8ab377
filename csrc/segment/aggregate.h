// out[i] = (1 - alpha) * row_scale[i] * (sum_e weight[edge(e)] * col_scale[col[e]] * x[col[e]] + loop(i)) + alpha * residual[i]
// for rows i in [begin, end) and edges rowptr[i] <= e < rowptr[i + 1], with edge(e) = edge_ids[e] (e where null) and
// loop(i) = col_scale[i + row_offset] * x[i + row_offset] where self_loops is set.
//   x [num_sources, num_features], rowptr [num_rows + 1], col [num_edges], out and residual [num_rows, num_features]
//   weight, row_scale, col_scale and residual may be null: 1, 1, 1 and 0.
template <typename scalar_t>
struct AggregateArgs {
  using acc_t = typename Simd<scalar_t>::acc_t;
  const scalar_t* x;
  const int64_t* rowptr;
  const acc_t* weight;
  const int64_t* edge_ids;
  const acc_t* row_scale;
  const acc_t* col_scale;
  const scalar_t* residual;
  acc_t alpha;
  bool self_loops;
  int64_t row_offset;
  int64_t num_features;
};

// One row, features [f, f + kVectors * lanes).
template <int kVectors, typename scalar_t, typename index_t>
inline void aggregate_block(const AggregateArgs<scalar_t>& args, const index_t* col, scalar_t* out, int64_t row, int64_t f) {
  using S = Simd<scalar_t>;
  using acc_t = typename S::acc_t;
  typename S::Vector sum[kVectors] = {};
  const auto add = [&](int64_t source, acc_t scale) {
    const scalar_t* p = args.x + source * args.num_features + f;
    for (int v = 0; v < kVectors; ++v) sum[v] += scale * S::load(p + v * S::kLanes);
  };
  for (int64_t e = args.rowptr[row]; e < args.rowptr[row + 1]; ++e) {
    const int64_t source = col[e];
    acc_t scale = args.weight ? args.weight[args.edge_ids ? args.edge_ids[e] : e] : acc_t(1);
    if (args.col_scale) scale *= args.col_scale[source];
    add(source, scale);
  }
  if (args.self_loops) add(row + args.row_offset, args.col_scale ? args.col_scale[row + args.row_offset] : acc_t(1));
  const acc_t scale = (1 - args.alpha) * (args.row_scale ? args.row_scale[row] : acc_t(1));
  const int64_t base = row * args.num_features + f;
  for (int v = 0; v < kVectors; ++v) {
    sum[v] *= scale;
    if (args.residual) sum[v] += args.alpha * S::load(args.residual + base + v * S::kLanes);
    S::store(out + base + v * S::kLanes, sum[v]);
  }
}

// One row, the features after the last whole vector.
template <typename scalar_t, typename index_t>
inline void aggregate_tail(const AggregateArgs<scalar_t>& args, const index_t* col, scalar_t* out, int64_t row, int64_t f) {
  using acc_t = typename Simd<scalar_t>::acc_t;
  acc_t sum = 0;
  for (int64_t e = args.rowptr[row]; e < args.rowptr[row + 1]; ++e) {
    const int64_t source = col[e];
    acc_t scale = args.weight ? args.weight[args.edge_ids ? args.edge_ids[e] : e] : acc_t(1);
    if (args.col_scale) scale *= args.col_scale[source];
    sum += scale * static_cast<acc_t>(args.x[source * args.num_features + f]);
  }
  if (args.self_loops) {
    const int64_t source = row + args.row_offset;
    sum += (args.col_scale ? args.col_scale[source] : acc_t(1)) * static_cast<acc_t>(args.x[source * args.num_features + f]);
  }
  sum *= (1 - args.alpha) * (args.row_scale ? args.row_scale[row] : acc_t(1));
  const int64_t i = row * args.num_features + f;
  if (args.residual) sum += args.alpha * static_cast<acc_t>(args.residual[i]);
  out[i] = static_cast<scalar_t>(sum);
}

template <typename scalar_t, typename index_t>
void aggregate(const AggregateArgs<scalar_t>& args, const index_t* col, scalar_t* out, int64_t begin, int64_t end) {
  constexpr int64_t kLanes = Simd<scalar_t>::kLanes;
  for (int64_t row = begin; row < end; ++row) {
    int64_t f = 0;
    for (; f + 4 * kLanes <= args.num_features; f += 4 * kLanes) aggregate_block<4>(args, col, out, row, f);
    for (; f + kLanes <= args.num_features; f += kLanes) aggregate_block<1>(args, col, out, row, f);
    for (; f < args.num_features; ++f) aggregate_tail(args, col, out, row, f);
  }
}
