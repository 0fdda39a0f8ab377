// Gates of experts that were chosen already, reading only their rows of the weight:
//   logits[t, j] = <x[t], weight[expert_ids[t, j]]>, s = sqrt(softplus(logits)), gates[t, j] = scale * s[j] / sum_i
//   s[i] x [num_tokens, dim], weight [num_experts, dim], expert_ids [num_tokens, k]
// Every dot product is summed in the same order, whatever its neighbours: by blocks of columns.
#include "moe/dot_tile.h"

template <typename scalar_t>
struct HashGateArgs {
  using acc_t = typename Simd<scalar_t>::acc_t;
  const scalar_t* x;
  const scalar_t* weight;
  const int32_t* expert_ids;
  acc_t* logits;
  acc_t* gates;
  int64_t dim;
  int64_t k;
  acc_t scale;
};

// Columns of the weight that stay in the L2 cache while all tokens pass over them.
constexpr int64_t kGateColumns = 1024;

// out[r] += <x, rows[r]> for kRows rows at once.
template <int kRows, typename scalar_t>
inline void add_gate_rows(const scalar_t* x, const scalar_t* const* rows, int64_t dim,
                          typename Simd<scalar_t>::acc_t* out) {
  using D = Dot<scalar_t>;
  typename D::Sum sums[kRows] = {};
  int64_t c = 0;
  for (; c + D::kStep <= dim; c += D::kStep) {
    const typename D::Operand a = D::load(x + c);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) D::multiply_add(sums[r], a, D::load(rows[r] + c));
  }
  if (c < dim) {
    const typename D::Operand a = D::load_part(x + c, dim - c);
    for (int r = 0; r < kRows; ++r) D::multiply_add(sums[r], a, D::load_part(rows[r] + c, dim - c));
  }
  for (int r = 0; r < kRows; ++r) out[r] += sum_lanes<typename Simd<scalar_t>::acc_t>(sums[r]);
}

// Adds columns [first, first + num_columns) to the logits of one token.
template <typename scalar_t>
inline void add_gate_columns(const HashGateArgs<scalar_t>& args, int64_t t, int64_t first, int64_t num_columns) {
  const scalar_t* rows[8];
  const scalar_t* x = args.x + t * args.dim + first;
  for (int64_t j = 0; j < args.k; j += 8) {
    const int64_t n = std::min<int64_t>(8, args.k - j);
    for (int64_t r = 0; r < n; ++r) rows[r] = args.weight + args.expert_ids[t * args.k + j + r] * args.dim + first;
    auto* out = args.logits + t * args.k + j;
    switch (n) {
      case 8: add_gate_rows<8>(x, rows, num_columns, out); break;
      case 7: add_gate_rows<7>(x, rows, num_columns, out); break;
      case 6: add_gate_rows<6>(x, rows, num_columns, out); break;
      case 5: add_gate_rows<5>(x, rows, num_columns, out); break;
      case 4: add_gate_rows<4>(x, rows, num_columns, out); break;
      case 3: add_gate_rows<3>(x, rows, num_columns, out); break;
      case 2: add_gate_rows<2>(x, rows, num_columns, out); break;
      default: add_gate_rows<1>(x, rows, num_columns, out);
    }
  }
}

// Tokens [begin, end).
template <typename scalar_t>
void hash_gate(const HashGateArgs<scalar_t>& args, int64_t begin, int64_t end) {
  using acc_t = typename HashGateArgs<scalar_t>::acc_t;
  std::fill(args.logits + begin * args.k, args.logits + end * args.k, acc_t(0));
  for (int64_t c = 0; c < args.dim; c += kGateColumns) {
    const int64_t n = std::min(kGateColumns, args.dim - c);
    for (int64_t t = begin; t < end; ++t) add_gate_columns(args, t, c, n);
  }
  for (int64_t t = begin; t < end; ++t) {
    const acc_t* logits = args.logits + t * args.k;
    acc_t* gates = args.gates + t * args.k;
    acc_t sum = 0;
    for (int64_t j = 0; j < args.k; ++j) {
      gates[j] = std::sqrt(std::max(logits[j], acc_t(0)) + std::log1p(std::exp(-std::abs(logits[j]))));
      sum += gates[j];
    }
    const acc_t factor = args.scale / (sum + acc_t(1e-20));
    for (int64_t j = 0; j < args.k; ++j) gates[j] *= factor;
  }
}
