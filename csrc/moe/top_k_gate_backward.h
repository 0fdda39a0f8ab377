// Gradients of top_k_gate by the logits. With g the gradient of the gates of a token, s its scores and c = scale:
//   of a chosen score: ds = c g, or c / S (g - sum_i g[i] s[i] / S) where normalized by S = sum of the chosen scores
//   of every score, for the sums: ds[e] += (G[e] - sum_f G[f] s[f] / Z) / Z, Z the sum of all scores (1 for softmax)
//   of the logits: softmax s (ds - sum_f s[f] ds[f]), else ds times the slope of the score
#include "moe/scores.h"

template <typename scalar_t>
struct TopKGateBackwardArgs {
  const scalar_t* grad;       // [num_tokens, k]
  const scalar_t* grad_sums;  // [num_experts] or null
  const scalar_t* logits;
  const int32_t* expert_ids;
  const scalar_t* normalizers;
  scalar_t* grad_logits;
  int64_t num_experts;
  int64_t k;
  scalar_t scale;
  Score score;
  bool normalize;
};

// Calls visit(e, n) for blocks of n experts, n the lanes of a vector or what is left.
template <typename scalar_t, typename Visit>
inline void for_each_block(int64_t num_experts, const Visit& visit) {
  constexpr int64_t kLanes = Simd<scalar_t>::kLanes;
  for (int64_t e = 0; e < num_experts; e += kLanes) visit(e, std::min(kLanes, num_experts - e));
}

// Scores of all experts of a token.
template <typename scalar_t>
inline void scores_again(const TopKGateBackwardArgs<scalar_t>& args, const scalar_t* logits, scalar_t normalizer,
                         scalar_t* scores) {
  const scalar_t shift = args.score == Score::kSoftmax ? normalizer : scalar_t(0);
  for_each_block<scalar_t>(args.num_experts, [&](int64_t e, int64_t n) {
    typename Simd<scalar_t>::Vector x{};
    load_partial(logits + e, n, &x);
    const auto s = score_vector(args.score, x - shift);
    store_partial(scores + e, n, &s);
  });
}

// Adds the gradients of the chosen scores to slopes [num_experts].
template <typename scalar_t>
inline void add_chosen(const TopKGateBackwardArgs<scalar_t>& args, int64_t t, const scalar_t* scores,
                       scalar_t* slopes) {
  const scalar_t* grad = args.grad + t * args.k;
  const int32_t* ids = args.expert_ids + t * args.k;
  scalar_t sum = 1, shared = 0;
  if (args.normalize) {
    sum = scalar_t(1e-20);
    for (int64_t j = 0; j < args.k; ++j) sum += scores[ids[j]];
    for (int64_t j = 0; j < args.k; ++j) shared += grad[j] * scores[ids[j]];
    shared /= sum;
  }
  for (int64_t j = 0; j < args.k; ++j) slopes[ids[j]] += args.scale / sum * (grad[j] - shared);
}

template <typename scalar_t>
inline scalar_t dot_rows(const scalar_t* a, const scalar_t* b, int64_t n) {
  typename Simd<scalar_t>::Vector sums{}, x{}, y{};
  for_each_block<scalar_t>(n, [&](int64_t e, int64_t count) {
    load_partial(a + e, count, &x);
    load_partial(b + e, count, &y);
    sums += x * y;
  });
  return sum_lanes<scalar_t>(sums);
}

// Tokens [begin, end). scores, slopes: scratch for num_experts numbers.
template <typename scalar_t>
void top_k_gate_backward(const TopKGateBackwardArgs<scalar_t>& args, scalar_t* scores, scalar_t* slopes, int64_t begin,
                         int64_t end) {
  const int64_t n = args.num_experts;
  const bool softmax = args.score == Score::kSoftmax;
  for (int64_t t = begin; t < end; ++t) {
    const scalar_t* logits = args.logits + t * n;
    scalar_t* out = args.grad_logits + t * n;
    scores_again(args, logits, args.normalizers[t], scores);
    std::fill_n(slopes, n, scalar_t(0));
    if (args.grad_sums != nullptr) {
      const scalar_t total = softmax ? scalar_t(1) : args.normalizers[t];
      const scalar_t mean = softmax ? scalar_t(0) : dot_rows(args.grad_sums, scores, n) / total;
      for (int64_t e = 0; e < n; ++e) slopes[e] = (args.grad_sums[e] - mean) / total;
    }
    add_chosen(args, t, scores, slopes);
    const scalar_t mean = softmax ? dot_rows(slopes, scores, n) : scalar_t(0);
    for_each_block<scalar_t>(n, [&](int64_t e, int64_t count) {
      typename Simd<scalar_t>::Vector s{}, slope{}, x{};
      load_partial(scores + e, count, &s);
      load_partial(slopes + e, count, &slope);
      load_partial(logits + e, count, &x);
      const auto grad = softmax ? s * (slope - mean) : slope * score_slope(args.score, x, s);
      store_partial(out + e, count, &grad);
    });
  }
}
