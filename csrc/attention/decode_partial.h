// The partial softmax of a leaf, the fold of leaves, and the end of a sequence. Included by decode_attention.h.

inline Vector max_vector(Vector a, Vector b) { return a > b ? a : b; }

// A partial softmax of all rows: maxima of the scores in bits, sums of 2^(score - maximum), and unnormalised outputs.
struct Partial {
  float *maxima, *sums, *outputs;
  Partial(float* data, const DecodeArgs& args)
      : maxima(data), sums(data + args.padded_rows()), outputs(data + 2 * args.padded_rows()) {}
};

// state += leaf. The one place where leaves meet, so equal leaves in equal order give equal bits.
[[gnu::noinline]] inline void fold(const DecodeArgs& args, Partial state, Partial leaf) {
  const int64_t value_lanes = args.padded_value_dim();
  float old_factor[kLanes], leaf_factor[kLanes];
  for (int64_t row = 0; row < args.rows(); ++row) {
    const int64_t lane = row % kLanes;
    if (lane == 0) {
      const Vector a = Float::load(state.maxima + row), b = Float::load(leaf.maxima + row);
      const Vector top = max_vector(a, b), base = top == -kInfinity ? Vector{} : top;
      const Vector f = exp2_vector(a - base), g = exp2_vector(b - base);
      Float::store(state.maxima + row, top);
      Float::store(state.sums + row, f * Float::load(state.sums + row) + g * Float::load(leaf.sums + row));
      Float::store(old_factor, f);
      Float::store(leaf_factor, g);
    }
    float* out = state.outputs + row * value_lanes;
    const float* add = leaf.outputs + row * value_lanes;
    const float f = old_factor[lane], g = leaf_factor[lane];
    for (int64_t d = 0; d < value_lanes; d += kLanes) {
      Float::store(out + d, f * Float::load(out + d) + g * Float::load(add + d));
    }
  }
}

// The state of a sequence without leaves. Other states begin as the first leaf.
inline void clear(const DecodeArgs& args, Partial state) {
  std::fill_n(state.maxima, args.padded_rows(), -kInfinity);
  std::fill_n(state.sums, args.partial_size() - args.padded_rows(), 0.0f);
}

// True where words are pairs of bfloat16. Pairs of dims would round the entries of an int8 cache for nothing.
inline bool takes_pairs(const DecodeArgs& args) {
  return args.query_type == Element::kBFloat16 && (!kSplitDims<Bf16Dot> || args.cache_type == Element::kBFloat16);
}

// Even and odd dims, kLanes of each, in the order of dims.
inline void join_dims(float* row, int64_t size) {
  for (int64_t d = 0; d < size; d += 2 * kLanes) {
    float joined[2 * kLanes];
    for (int i = 0; i < 2 * kLanes; ++i) joined[i] = row[d + i % 2 * kLanes + i / 2];
    std::memcpy(row + d, joined, sizeof(joined));
  }
}

// Divides by the sums, joins the sinks, and writes out and lse.
inline void finish(const DecodeArgs& args, int64_t sequence, int64_t kv_head, Partial state) {
  const auto store = row_storer(args.query_type);
  for (int64_t row = 0; row < args.rows(); ++row) {
    const int64_t flat = args.flat(sequence, row, kv_head);
    const float sink = args.sinks ? args.sinks[args.head(row, kv_head)] * kLog2E : -kInfinity;
    const float top = std::max(state.maxima[row], sink), base = top == -kInfinity ? 0.0f : top;
    const float factor = std::exp2(state.maxima[row] - base);
    const float sum = factor * state.sums[row] + std::exp2(sink - base);
    float* out = state.outputs + row * args.padded_value_dim();
    if (kSplitDims<Bf16Dot> && takes_pairs(args)) join_dims(out, args.padded_value_dim());
    store(out, sum == 0.0f ? 0.0f : factor / sum, args.value_dim,
          args.out + flat * args.value_dim * size_of(args.query_type));
    args.lse[flat] = (top + std::log2(sum)) / kLog2E;
  }
}
