// out[t] = sum_j gates[t, j] * y[inverse[t, j]] over kept routes, for tokens t in [begin, end).
//   y [num_routes, dim], inverse [num_tokens, k] with -1 where dropped, gates [num_tokens, k] or null (ones)
template <typename scalar_t>
struct CombineArgs {
  const scalar_t* y;
  const int32_t* inverse;
  const typename Simd<scalar_t>::acc_t* gates;
  int64_t k;
  int64_t dim;
};

// Brings the same columns of the next token's rows, which are anywhere in y.
template <int kVectors, typename scalar_t>
inline void prefetch_block(const CombineArgs<scalar_t>& args, int64_t t, int64_t c) {
  constexpr int64_t kBytes = kVectors * Simd<scalar_t>::kLanes * sizeof(scalar_t);
  for (int64_t j = 0; j < args.k; ++j) {
    const int64_t position = std::max(args.inverse[t * args.k + j], 0);
    const char* row = reinterpret_cast<const char*>(args.y + position * args.dim + c);
    for (int64_t b = 0; b < kBytes; b += 64) __builtin_prefetch(row + b);
  }
}

// Columns [c, c + kVectors * lanes) of one token.
template <int kVectors, typename scalar_t>
inline void combine_block(const CombineArgs<scalar_t>& args, scalar_t* out, int64_t t, int64_t c) {
  using S = Simd<scalar_t>;
  typename S::Vector sum[kVectors] = {};
  for (int64_t j = 0; j < args.k; ++j) {
    const int64_t position = args.inverse[t * args.k + j];
    if (position < 0) continue;
    const auto gate = args.gates ? args.gates[t * args.k + j] : typename S::acc_t(1);
    const scalar_t* row = args.y + position * args.dim + c;
    for (int v = 0; v < kVectors; ++v) sum[v] += gate * S::load(row + v * S::kLanes);
  }
  for (int v = 0; v < kVectors; ++v) S::store(out + t * args.dim + c + v * S::kLanes, sum[v]);
}

template <typename scalar_t>
inline void combine_tail(const CombineArgs<scalar_t>& args, scalar_t* out, int64_t t, int64_t c) {
  using acc_t = typename Simd<scalar_t>::acc_t;
  acc_t sum = 0;
  for (int64_t j = 0; j < args.k; ++j) {
    const int64_t position = args.inverse[t * args.k + j];
    if (position < 0) continue;
    const acc_t gate = args.gates ? args.gates[t * args.k + j] : acc_t(1);
    sum += gate * static_cast<acc_t>(args.y[position * args.dim + c]);
  }
  out[t * args.dim + c] = static_cast<scalar_t>(sum);
}

template <typename scalar_t>
void combine(const CombineArgs<scalar_t>& args, scalar_t* out, int64_t begin, int64_t end) {
  constexpr int64_t kLanes = Simd<scalar_t>::kLanes;
  for (int64_t t = begin; t < end; ++t) {
    int64_t c = 0;
    for (; c + 8 * kLanes <= args.dim; c += 8 * kLanes) {
      prefetch_block<8>(args, std::min(t + 1, end - 1), c);
      combine_block<8>(args, out, t, c);
    }
    for (; c + kLanes <= args.dim; c += kLanes) combine_block<1>(args, out, t, c);
    for (; c < args.dim; ++c) combine_tail(args, out, t, c);
  }
}
