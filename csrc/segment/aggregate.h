// aggregate for rows [begin, end); AggregateArgs says what it computes.

// Source rows are asked for ahead, across row ends: about as many bytes as half of the first-level cache keeps until
// use.
constexpr int64_t kPrefetchBytes = 12 << 10;
// As many sums as the register file holds: wide rows then pass over their edges once.
constexpr int kMaxVectors = GOSSAMER_VECTOR_BYTES == 64 ? 16 : 8;

// One row, features [f, f + width) with width = kRegisters registers, or `count` features of one register if kPartial.
template <int kRegisters, bool kPartial, typename scalar_t, typename index_t>
inline void aggregate_block(const AggregateArgs<scalar_t, index_t>& args, int64_t row, int64_t f, int64_t count = 0) {
  using W = Wide<scalar_t>;
  using acc_t = typename W::acc_t;
  constexpr int64_t kPrefetchEdges = std::clamp<int64_t>(kPrefetchBytes / (kRegisters * GOSSAMER_VECTOR_BYTES), 8, 64);
  typename W::Vector sum[kRegisters][W::kParts] = {};
  const auto load = [&](const scalar_t* p, int r, typename W::Vector* parts) __attribute__((always_inline)) {
    if constexpr (kPartial) {
      load_partial(p, count, parts);
    } else {
      W::load(p + r * W::kWidth, parts);
    }
  };
  const auto add = [&](int64_t source, acc_t scale) __attribute__((always_inline)) {
    const scalar_t* p = args.x + source * args.num_features + f;
    for (int r = 0; r < kRegisters; ++r) {
      typename W::Vector value[W::kParts];
      load(p, r, value);
      for (int part = 0; part < W::kParts; ++part) sum[r][part] += scale * value[part];
    }
  };
  const int64_t last = args.rowptr[args.num_rows] - 1;
  for (int64_t e = args.rowptr[row]; e < args.rowptr[row + 1]; ++e) {
    const int64_t ahead = std::min(e + kPrefetchEdges, last);
    const scalar_t* next = args.x + args.col[ahead] * args.num_features + f;
    for (int r = 0; r < kRegisters * GOSSAMER_VECTOR_BYTES; r += 64) {
      __builtin_prefetch(reinterpret_cast<const char*>(next) + r);
    }
    acc_t scale = 1;
    if (args.weight) {
      if (args.edge_ids) __builtin_prefetch(args.weight + args.edge_ids[ahead]);
      scale = args.weight[args.edge_ids ? args.edge_ids[e] : e];
    }
    const int64_t source = args.col[e];
    if (args.col_scale) scale *= args.col_scale[source];
    add(source, scale);
  }
  if (args.self_loops) {
    const int64_t source = row + args.row_offset;
    add(source, args.col_scale ? args.col_scale[source] : acc_t(1));
  }
  const acc_t factor = (1 - args.alpha) * (args.row_scale ? args.row_scale[row] : acc_t(1));
  const int64_t base = row * args.num_features + f;
  for (int r = 0; r < kRegisters; ++r) {
    typename W::Vector residual[W::kParts] = {};
    if (args.residual) load(args.residual + base, r, residual);
    for (int part = 0; part < W::kParts; ++part) sum[r][part] = factor * sum[r][part] + args.alpha * residual[part];
    if constexpr (kPartial) {
      store_partial(args.out + base, count, sum[r]);
    } else {
      W::store(args.out + base + r * W::kWidth, sum[r]);
    }
  }
}

// Blocks of halving width; the last one is moved left to end with the row, so some features are computed twice, alike.
template <int kRegisters, typename scalar_t, typename index_t>
inline int64_t aggregate_blocks(const AggregateArgs<scalar_t, index_t>& args, int64_t row, int64_t f) {
  constexpr int64_t width = kRegisters * Wide<scalar_t>::kWidth;
  for (; f + width <= args.num_features; f += width) aggregate_block<kRegisters, false>(args, row, f);
  if constexpr (kRegisters > 1) {
    return aggregate_blocks<kRegisters / 2>(args, row, f);
  } else {
    if (f < args.num_features) aggregate_block<1, false>(args, row, args.num_features - width);
    return args.num_features;
  }
}

template <typename scalar_t, typename index_t>
void aggregate(const AggregateArgs<scalar_t, index_t>& args, int64_t begin, int64_t end) {
  if (args.num_features < Wide<scalar_t>::kWidth) {
    for (int64_t row = begin; row < end; ++row) aggregate_block<1, true>(args, row, 0, args.num_features);
  } else {
    for (int64_t row = begin; row < end; ++row) aggregate_blocks<kMaxVectors / Wide<scalar_t>::kParts>(args, row, 0);
  }
}
