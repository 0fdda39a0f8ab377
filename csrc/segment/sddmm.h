// out[edge(e)] = factor * row_scale[i] * col_scale[col[e]] * <a[i], b[col[e]]> for rows i in [begin, end) and their
// edges rowptr[i] <= e < rowptr[i + 1], with edge(e) = edge_ids[e] (e where null).
//   a [num_rows, num_features], b [num_sources, num_features], out [num_edges]; null scales are 1.

template <typename scalar_t>
inline Accumulator<scalar_t> dot(const scalar_t* a, const scalar_t* b, int64_t size) {
  using W = Wide<scalar_t>;
  constexpr int kUnroll = 4 / W::kParts;
  typename W::Vector sum[kUnroll][W::kParts] = {};
  typename W::Vector left[W::kParts], right[W::kParts];
  int64_t f = 0;
  for (; f + kUnroll * W::kWidth <= size; f += kUnroll * W::kWidth) {
    for (int u = 0; u < kUnroll; ++u) {
      W::load(a + f + u * W::kWidth, left);
      W::load(b + f + u * W::kWidth, right);
      for (int part = 0; part < W::kParts; ++part) sum[u][part] += left[part] * right[part];
    }
  }
  for (; f < size; f += W::kWidth) {
    const int64_t count = std::min(W::kWidth, size - f);
    load_partial(a + f, count, left);
    load_partial(b + f, count, right);
    for (int part = 0; part < W::kParts; ++part) sum[0][part] += left[part] * right[part];
  }
  typename W::Vector total = {};
  for (int u = 0; u < kUnroll; ++u) {
    for (int part = 0; part < W::kParts; ++part) total += sum[u][part];
  }
  return sum_lanes<scalar_t>(total);
}

template <typename scalar_t, typename index_t>
void sddmm(const SddmmArgs<scalar_t, index_t>& args, int64_t begin, int64_t end) {
  const int64_t num_features = args.num_features;
  const int64_t row_bytes = num_features * static_cast<int64_t>(sizeof(scalar_t));
  const int64_t prefetch_edges = std::clamp<int64_t>((8 << 10) / row_bytes, 4, 64);
  const int64_t last = args.rowptr[end] - 1;
  for (int64_t row = begin; row < end; ++row) {
    const Accumulator<scalar_t> row_factor = args.factor * (args.row_scale ? args.row_scale[row] : 1);
    for (int64_t e = args.rowptr[row]; e < args.rowptr[row + 1]; ++e) {
      const int64_t ahead = args.col[std::min(e + prefetch_edges, last)];
      const char* next = reinterpret_cast<const char*>(args.b + ahead * num_features);
      for (int64_t byte = 0; byte < row_bytes; byte += 64) __builtin_prefetch(next + byte);
      const int64_t source = args.col[e];
      Accumulator<scalar_t> value =
          row_factor * dot(args.a + row * num_features, args.b + source * num_features, num_features);
      if (args.col_scale) value *= args.col_scale[source];
      args.out[args.edge_ids ? args.edge_ids[e] : e] = value;
    }
  }
}
