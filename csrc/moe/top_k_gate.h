// The k best experts of each token and their gates:
//   s = softmax(logits), sigmoid(logits) or sqrt(softplus(logits)), expert_ids = the k highest of s + bias
//   gates[j] = scale * s[id[j]], over the sum of the k of them where normalize
//   score_sums[e] = sum over tokens of s[e] / sum_f s[f]
// With groups, only the experts of the top groups are candidates, by the sum of each group's two best s + bias.
// logits [num_tokens, num_experts]; gates, expert_ids [num_tokens, k]. Without bias and groups the logits themselves
// choose: their order is that of the scores, and no rounding makes two of them equal.
#include "moe/scores.h"
#include "moe/top_k.h"

template <typename scalar_t>
struct TopKGateArgs {
  const scalar_t* logits;
  const scalar_t* bias;  // [num_experts] or null
  scalar_t* gates;
  int32_t* expert_ids;
  scalar_t* normalizers;  // [num_tokens]: log of the sum of exponentials for softmax, else the sum of scores
  int64_t num_experts;
  int64_t k;
  int64_t num_groups;
  int64_t top_groups;
  scalar_t scale;
  Score score;
  bool normalize;
  bool sums;  // whether score_sums are wanted
};

// Rows of one thread, each of whole vectors.
template <typename scalar_t>
struct GateScratch {
  explicit GateScratch(int64_t num_experts)
      : size((num_experts + Simd<scalar_t>::kLanes - 1) / Simd<scalar_t>::kLanes * Simd<scalar_t>::kLanes),
        logits(size),
        scores(size),
        choice(size),
        groups(size),
        keys(size),
        candidates(size) {}

  int64_t size;
  std::vector<scalar_t> logits, scores, choice, groups;
  std::vector<Key<scalar_t>> keys;
  std::vector<int32_t> candidates;
};

template <typename scalar_t>
inline void keys_of_row(const scalar_t* values, int64_t num_experts, GateScratch<scalar_t>& scratch) {
  using S = Simd<scalar_t>;
  for (int64_t e = 0; e < scratch.size; e += S::kLanes) {
    const Keys<scalar_t> keys = keys_of<scalar_t>(S::load(values + e));
    std::memcpy(&scratch.keys[e], &keys, sizeof(keys));
  }
  std::fill(scratch.keys.begin() + num_experts, scratch.keys.end(), kLowestKey<scalar_t>);
}

// Takes the experts outside the top groups out of the choice.
template <typename scalar_t>
inline void keep_top_groups(const TopKGateArgs<scalar_t>& args, GateScratch<scalar_t>& scratch) {
  constexpr scalar_t kLowest = -std::numeric_limits<scalar_t>::infinity();
  const int64_t size = args.num_experts / args.num_groups;
  const auto best_two = [&](int64_t g) {
    scalar_t first = kLowest, second = kLowest;
    for (int64_t e = g * size; e < (g + 1) * size; ++e) {
      const scalar_t v = scratch.choice[e];
      second = v > first ? first : std::max(second, v);
      first = std::max(first, v);
    }
    return size == 1 ? first : first + second;
  };
  for (int64_t g = 0; g < args.num_groups; ++g) scratch.groups[g] = best_two(g);
  for (int64_t g = 0; g < args.num_groups; ++g) {
    int64_t rank = 0;
    for (int64_t h = 0; h < args.num_groups; ++h) {
      rank += scratch.groups[h] > scratch.groups[g] || (scratch.groups[h] == scratch.groups[g] && h < g);
    }
    if (rank >= args.top_groups) std::fill_n(scratch.keys.begin() + g * size, size, kLowestKey<scalar_t>);
  }
}

// Scores of all experts, for softmax the exponentials alone; returns their sum. highest: the largest logit.
template <typename scalar_t>
inline scalar_t score_row(Score score, const scalar_t* logits, scalar_t highest, int64_t num_experts, int64_t size,
                          scalar_t* scores) {
  using S = Simd<scalar_t>;
  const scalar_t shift = score == Score::kSoftmax ? highest : scalar_t(0);
  typename S::Vector sums{};
  for (int64_t e = 0; e < size; e += S::kLanes) {
    typename S::Vector s = score_vector(score, S::load(logits + e) - shift);
    if (e + S::kLanes > num_experts) {
      for (int64_t l = num_experts - e; l < S::kLanes; ++l) s[l] = 0;
    }
    S::store(scores + e, s);
    sums += s;
  }
  return sum_lanes<scalar_t>(sums);
}

// The scores of a token, where all were computed: factor * scratch.scores.
template <typename scalar_t>
struct RowScores {
  scalar_t highest;
  scalar_t sum;
  scalar_t factor;  // one over the sum for softmax
};

template <typename scalar_t>
inline RowScores<scalar_t> score_token(const TopKGateArgs<scalar_t>& args, const scalar_t* logits, scalar_t highest,
                                       GateScratch<scalar_t>& scratch) {
  const scalar_t sum = score_row(args.score, logits, highest, args.num_experts, scratch.size, scratch.scores.data());
  return {highest, sum, args.score == Score::kSoftmax ? 1 / sum : scalar_t(1)};
}

// Fills scratch.keys where scores choose, with the bias and within groups.
template <typename scalar_t>
inline void keys_of_scores(const TopKGateArgs<scalar_t>& args, const RowScores<scalar_t>& row,
                           GateScratch<scalar_t>& scratch) {
  for (int64_t e = 0; e < args.num_experts; ++e) scratch.choice[e] = scratch.scores[e] * row.factor;
  for (int64_t e = 0; args.bias != nullptr && e < args.num_experts; ++e) scratch.choice[e] += args.bias[e];
  keys_of_row(scratch.choice.data(), args.num_experts, scratch);
  if (args.num_groups > 1) keep_top_groups(args, scratch);
}

// gates = the scores of a few experts that were not scored with the others.
template <typename scalar_t>
inline void score_few(const TopKGateArgs<scalar_t>& args, const scalar_t* logits, const int32_t* ids, scalar_t* gates,
                      GateScratch<scalar_t>& scratch) {
  using S = Simd<scalar_t>;
  for (int64_t j = 0; j < args.k; ++j) scratch.choice[j] = logits[ids[j]];
  for (int64_t j = 0; j < args.k; j += S::kLanes) {
    S::store(&scratch.choice[j], score_vector(args.score, S::load(&scratch.choice[j])));
  }
  std::copy_n(scratch.choice.begin(), args.k, gates);
}

template <typename scalar_t>
inline void gate_token(const TopKGateArgs<scalar_t>& args, const scalar_t* logits, scalar_t* score_sums, int64_t t,
                       GateScratch<scalar_t>& scratch) {
  const bool softmax = args.score == Score::kSoftmax, by_logits = args.bias == nullptr && args.num_groups == 1;
  int32_t* ids = args.expert_ids + t * args.k;
  scalar_t* gates = args.gates + t * args.k;
  RowScores<scalar_t> row{};
  if (by_logits) {
    keys_of_row(logits, args.num_experts, scratch);
  } else {
    row = score_token(args, logits, *std::max_element(logits, logits + args.num_experts), scratch);
    keys_of_scores(args, row, scratch);
  }
  top_k<scalar_t>(scratch.keys.data(), scratch.size, args.k, scratch.candidates.data(), ids);
  if (by_logits && !softmax && !args.sums) {
    score_few(args, logits, ids, gates, scratch);
  } else {
    if (by_logits) row = score_token(args, logits, logits[ids[0]], scratch);
    for (int64_t j = 0; j < args.k; ++j) gates[j] = scratch.scores[ids[j]] * row.factor;
  }
  args.normalizers[t] = softmax ? row.highest + std::log(row.sum) : row.sum;
  scalar_t sum = 0;
  for (int64_t j = 0; j < args.k; ++j) sum += gates[j];
  const scalar_t factor = args.normalize ? args.scale / (sum + scalar_t(1e-20)) : args.scale;
  for (int64_t j = 0; j < args.k; ++j) gates[j] *= factor;
  if (!args.sums) return;
  const scalar_t share = 1 / row.sum;
  const scalar_t* scores = scratch.scores.data();
  for (int64_t e = 0; e < args.num_experts; ++e) score_sums[e] += scores[e] * share;
}

// Tokens [begin, end); score_sums [num_experts] are added to.
template <typename scalar_t>
void top_k_gate(const TopKGateArgs<scalar_t>& args, scalar_t* score_sums, int64_t begin, int64_t end) {
  GateScratch<scalar_t> scratch(args.num_experts);
  const bool whole = scratch.size == args.num_experts;
  for (int64_t t = begin; t < end; ++t) {
    const scalar_t* logits = args.logits + t * args.num_experts;
    if (!whole) logits = std::copy_n(logits, args.num_experts, scratch.logits.data()) - args.num_experts;
    gate_token(args, logits, score_sums, t, scratch);
  }
}
