// Gradients of combine for tokens t in [begin, end) and their kept routes p = inverse[t, j]:
//   grad_y[p] = gates[t, j] * grad[t]        grad_gates[t, j] = <grad[t], y[p]>, 0 where dropped
//   grad [num_tokens, dim], y and grad_y [num_routes, dim], gates and grad_gates [num_tokens, k] (null: ones, not
//   wanted)
template <typename scalar_t>
struct CombineBackwardArgs {
  using acc_t = typename Simd<scalar_t>::acc_t;
  const scalar_t* grad;
  const scalar_t* y;
  const int32_t* inverse;
  const acc_t* gates;
  scalar_t* grad_y;
  acc_t* grad_gates;
  int64_t k;
  int64_t dim;
};

// out = gate * grad over one row; returns <grad, y>.
template <typename scalar_t, typename acc_t>
inline acc_t scale_and_dot(const scalar_t* grad, const scalar_t* y, acc_t gate, scalar_t* out, int64_t dim) {
  using S = Simd<scalar_t>;
  typename S::Vector dots = {};
  int64_t c = 0;
  for (; c + S::kLanes <= dim; c += S::kLanes) {
    const typename S::Vector g = S::load(grad + c);
    dots += g * S::load(y + c);
    S::store(out + c, gate * g);
  }
  acc_t dot = 0;
  for (int64_t l = 0; l < S::kLanes; ++l) dot += dots[l];
  for (; c < dim; ++c) {
    dot += static_cast<acc_t>(grad[c]) * static_cast<acc_t>(y[c]);
    out[c] = static_cast<scalar_t>(gate * static_cast<acc_t>(grad[c]));
  }
  return dot;
}

template <typename scalar_t>
void combine_backward(const CombineBackwardArgs<scalar_t>& args, int64_t begin, int64_t end) {
  using acc_t = typename Simd<scalar_t>::acc_t;
  for (int64_t route = begin * args.k; route < end * args.k; ++route) {
    const int64_t p = args.inverse[route];
    acc_t dot = 0;
    if (p >= 0) {
      const acc_t gate = args.gates ? args.gates[route] : acc_t(1);
      dot = scale_and_dot(args.grad + route / args.k * args.dim, args.y + p * args.dim, gate,
                          args.grad_y + p * args.dim, args.dim);
    }
    if (args.grad_gates) args.grad_gates[route] = dot;
  }
}
