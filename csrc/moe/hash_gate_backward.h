// Gradients of hash_gate. With S = sum_i s[i] and g = scale * s / S:
//   ds[j] = scale / S * (grad[j] - sum_i grad[i] s[i] / S), dlogit[j] = ds[j] * sigmoid(logit[j]) / (2 s[j])
//   dx[t] = sum_j dlogit[t, j] weight[e(t, j)], dweight[e] = sum of dlogit * x over the routes of e, in token order
template <typename scalar_t>
struct HashGateBackwardArgs {
  using acc_t = typename Simd<scalar_t>::acc_t;
  const acc_t* grad;  // [num_tokens, k]
  const scalar_t* x;
  const scalar_t* weight;
  const int32_t* expert_ids;
  const acc_t* logits;
  acc_t* grad_logits;     // [num_tokens, k]
  scalar_t* grad_x;       // [num_tokens, dim]
  scalar_t* grad_weight;  // [num_experts, dim]
  int64_t num_tokens;
  int64_t num_experts;
  int64_t dim;
  int64_t k;
  acc_t scale;
};

template <typename scalar_t>
inline void gate_gradient(const HashGateBackwardArgs<scalar_t>& args, int64_t t) {
  using acc_t = typename HashGateBackwardArgs<scalar_t>::acc_t;
  const acc_t* logits = args.logits + t * args.k;
  const acc_t* grad = args.grad + t * args.k;
  acc_t* out = args.grad_logits + t * args.k;
  acc_t sum = 0, dot = 0;
  for (int64_t j = 0; j < args.k; ++j) {
    out[j] = std::sqrt(std::max(logits[j], acc_t(0)) + std::log1p(std::exp(-std::abs(logits[j]))));
    sum += out[j];
    dot += grad[j] * out[j];
  }
  sum += acc_t(1e-20);
  for (int64_t j = 0; j < args.k; ++j) {
    const acc_t slope = out[j] > 0 ? 1 / (1 + std::exp(-logits[j])) / (2 * out[j]) : acc_t(0);
    out[j] = args.scale / sum * (grad[j] - dot / sum) * slope;
  }
}

// sums += factor * row over n elements.
template <typename scalar_t>
inline void add_scaled(const scalar_t* row, typename Simd<scalar_t>::acc_t factor, int64_t n,
                       typename Simd<scalar_t>::acc_t* sums) {
  using acc_t = typename Simd<scalar_t>::acc_t;
  using A = Simd<acc_t>;
  int64_t c = 0;
  for (; c + A::kLanes <= n; c += A::kLanes)
    A::store(sums + c, A::load(sums + c) + factor * Simd<scalar_t>::load(row + c));
  for (; c < n; ++c) sums[c] += factor * static_cast<acc_t>(row[c]);
}

// Tokens [begin, end): grad_logits and grad_x. sums: scratch for dim numbers.
template <typename scalar_t>
void hash_gate_input_backward(const HashGateBackwardArgs<scalar_t>& args,
                              typename HashGateBackwardArgs<scalar_t>::acc_t* sums, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    gate_gradient(args, t);
    std::fill_n(sums, args.dim, 0);
    for (int64_t j = 0; j < args.k; ++j) {
      const int64_t r = t * args.k + j;
      add_scaled(args.weight + args.expert_ids[r] * args.dim, args.grad_logits[r], args.dim, sums);
    }
    for (int64_t c = 0; c < args.dim; ++c) args.grad_x[t * args.dim + c] = static_cast<scalar_t>(sums[c]);
  }
}

// Columns [begin, end) of grad_weight, after grad_logits is there. sums: scratch for num_experts * (end - begin).
template <typename scalar_t>
void hash_gate_weight_backward(const HashGateBackwardArgs<scalar_t>& args,
                               typename HashGateBackwardArgs<scalar_t>::acc_t* sums, int64_t begin, int64_t end) {
  const int64_t n = end - begin;
  std::fill_n(sums, args.num_experts * n, 0);
  for (int64_t r = 0; r < args.num_tokens * args.k; ++r) {
    add_scaled(args.x + r / args.k * args.dim + begin, args.grad_logits[r], n, sums + args.expert_ids[r] * n);
  }
  for (int64_t e = 0; e < args.num_experts; ++e) {
    scalar_t* out = args.grad_weight + e * args.dim + begin;
    for (int64_t c = 0; c < n; ++c) out[c] = static_cast<scalar_t>(sums[e * n + c]);
  }
}
