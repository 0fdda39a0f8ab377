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

// Brings the same columns of the next token's rows, which are anywhere in y. Inlined by force: gcc takes a function
// that only prefetches for one without effect, and drops its calls.
template <int kRegisters, typename scalar_t>
[[gnu::always_inline]] inline void prefetch_block(const CombineArgs<scalar_t>& args, int64_t t, int64_t c) {
  constexpr int64_t kBytes = kRegisters * Wide<scalar_t>::kWidth * sizeof(scalar_t);
  for (int64_t j = 0; j < args.k; ++j) {
    const int64_t position = std::max(args.inverse[t * args.k + j], 0);
    const char* row = reinterpret_cast<const char*>(args.y + position * args.dim + c);
    for (int64_t b = 0; b < kBytes; b += 64) __builtin_prefetch(row + b);
  }
}

// Columns [c, c + kRegisters * width) of one token.
template <int kRegisters, typename scalar_t>
inline void combine_block(const CombineArgs<scalar_t>& args, scalar_t* out, int64_t t, int64_t c) {
  using W = Wide<scalar_t>;
  typename W::Vector sums[kRegisters * W::kParts] = {}, parts[W::kParts];
  for (int64_t j = 0; j < args.k; ++j) {
    const int64_t position = args.inverse[t * args.k + j];
    if (position < 0) continue;
    const auto gate = args.gates ? args.gates[t * args.k + j] : typename W::acc_t(1);
    const scalar_t* row = args.y + position * args.dim + c;
#pragma GCC unroll 8
    for (int r = 0; r < kRegisters; ++r) {
      W::load(row + r * W::kWidth, parts);
      for (int part = 0; part < W::kParts; ++part) sums[r * W::kParts + part] += gate * parts[part];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRegisters; ++r) {
    W::store(out + t * args.dim + c + r * W::kWidth, sums + r * W::kParts);
  }
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
  constexpr int kRegisters = 8 / Wide<scalar_t>::kParts;
  constexpr int64_t kWidth = Wide<scalar_t>::kWidth;
  for (int64_t t = begin; t < end; ++t) {
    int64_t c = 0;
    for (; c + kRegisters * kWidth <= args.dim; c += kRegisters * kWidth) {
      prefetch_block<kRegisters>(args, std::min(t + 1, end - 1), c);
      combine_block<kRegisters>(args, out, t, c);
    }
    for (; c + kWidth <= args.dim; c += kWidth) combine_block<1>(args, out, t, c);
    for (; c < args.dim; ++c) combine_tail(args, out, t, c);
  }
}
