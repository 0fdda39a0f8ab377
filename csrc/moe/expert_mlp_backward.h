// Gradients of expert_mlp. With A = activation(H), H = w_in x, y = w_out A, out = sum gate * y:
//   dA = w_out^T grad (before the gate), dgate = <dA, A>, dH = gate * dA * activation'(H)
//   dw_out = grad^T (gate A), dw_in = dH^T x, dx = w_in^T dH
//
// As in the forward, threads divide columns (or rows of a weight gradient) and go through the experts in order.

// Panels of a weight matrix that share the cache lines of its rows are packed together.
template <typename scalar_t>
constexpr int kPanels = std::max<int>(1, 64 / (kOuterColumns<scalar_t> * sizeof(scalar_t)));

// products[panel][i][c] = <row i, column c of weights [depth, stride]> for columns [begin, end) and all rows of one
// expert; finish(row, num_rows, first column, num_columns, products) gets up to six rows and kPanels panels at a time.
template <typename scalar_t, typename acc_t, typename Row, typename Finish>
void multiply_transposed(const Row& row, int64_t num_rows, const scalar_t* weights, int64_t depth, int64_t stride,
                         int64_t begin, int64_t end, void* scratch, const Finish& finish) {
  using Type = typename Word<scalar_t>::Type;
  constexpr int64_t kColumns = kOuterColumns<scalar_t>;
  const auto pack = [&](int64_t first, int64_t num_columns, Type* panels) {
    const auto weight_row = [&](int64_t r) {
      __builtin_prefetch(weights + (r + 16) * stride + first);
      __builtin_prefetch(weights + (r + 16) * stride + first + 32);
      return weights + r * stride + first;
    };
    pack_columns<scalar_t, kColumns, kPanels<scalar_t>>(weight_row, depth, num_columns, panels);
  };
  multiply_packed<kPanels<scalar_t>, OneSum<scalar_t>, scalar_t, acc_t>(
      row, num_rows, depth, begin, end, kPanels<scalar_t> * kColumns, static_cast<Type*>(scratch), pack, finish);
}

// The first n lanes, zero beyond.
template <typename scalar_t>
inline typename Simd<scalar_t>::Vector load_hidden(const scalar_t* p, int64_t n) {
  if (n == Simd<scalar_t>::kLanes) return Simd<scalar_t>::load(p);
  scalar_t padded[Simd<scalar_t>::kLanes] = {};
  std::memcpy(padded, p, n * sizeof(scalar_t));
  return Simd<scalar_t>::load(padded);
}

template <typename scalar_t, typename acc_t>
inline void store_row(scalar_t* out, const acc_t* row, int64_t num_columns) {
  using S = Simd<acc_t>;
  for (int64_t c = 0; c < num_columns; c += S::kLanes) {
    store_part(out + c, S::load(row + c), std::min<int64_t>(S::kLanes, num_columns - c));
  }
}

// One row and one panel of dA: writes dH and gate * A, returns the panel's part of <dA, A>.
template <typename scalar_t, typename acc_t>
inline acc_t hidden_gradient_row(const ExpertArgs<scalar_t>& args, int64_t p, int64_t first, int64_t num_columns,
                                 const acc_t* grad_activated) {
  using S = Simd<acc_t>;
  using Vector = typename S::Vector;
  const bool gated = args.activation == Activation::kSwiglu;
  const acc_t gate = args.gate(p);
  const int64_t at = p * args.d_hidden() + first;
  Vector dot = {};
  for (int64_t c = 0; c < num_columns; c += S::kLanes) {
    const int64_t n = std::min<int64_t>(S::kLanes, num_columns - c);
    const Vector h = load_hidden(args.hidden + at + c, n);
    const Vector up = gated ? load_hidden(args.hidden + at + args.d_ff + c, n) : Vector{};
    const Vector grad = S::load(grad_activated + c);
    const Vector activated = rounded<scalar_t>(activate(args.activation, h, up, args.limit));
    Vector by_h, by_up = {};
    activation_slopes(args.activation, h, up, args.limit, &by_h, &by_up);
    store_part(args.grad_hidden + at + c, gate * grad * by_h, n);
    if (gated) store_part(args.grad_hidden + at + args.d_ff + c, gate * grad * by_up, n);
    store_part(args.activated + p * args.d_ff + first + c, gate * activated, n);
    dot += grad * activated;  // both are zero beyond num_columns
  }
  acc_t total = 0;
  for (int64_t l = 0; l < S::kLanes; ++l) total += dot[l];
  return total;
}

// First pass: grad_hidden, gate * activated and parts of the gates' gradients, columns [begin, end) of d_ff.
template <typename scalar_t>
void expert_hidden_backward(const ExpertArgs<scalar_t>& args, void* scratch, int64_t begin, int64_t end) {
  using acc_t = typename ExpertArgs<scalar_t>::acc_t;
  constexpr int64_t kColumns = kOuterColumns<scalar_t>;
  for (int64_t e = 0; e < args.num_experts; ++e) {
    const int64_t start = args.offsets[e], num_rows = args.offsets[e + 1] - start;
    if (num_rows == 0) continue;
    const auto finish = [&](int64_t row, int64_t n, int64_t first, int64_t num_columns, const auto& products) {
      for (int64_t c = 0; c < num_columns; c += kColumns) {
        for (int64_t i = 0; i < n; ++i) {
          const int64_t p = start + row + i;
          const acc_t part = hidden_gradient_row(args, p, first + c, std::min(kColumns, num_columns - c),
                                                 products[c / kColumns] + i * kColumns);
          if (args.gate_parts) args.gate_parts[p * args.num_panels + (first + c) / kColumns] = part;
        }
      }
    };
    multiply_transposed<scalar_t, acc_t>([&](int64_t i) { return args.grad + args.token(start + i) * args.d_model; },
                                         num_rows, args.w_out + e * args.d_model * args.d_ff, args.d_model, args.d_ff,
                                         begin, end, scratch, finish);
  }
}

// Last pass: sums[token] += w_in^T dH, columns [begin, end) of d_model, experts in order.
template <typename scalar_t>
void expert_input_backward(const ExpertArgs<scalar_t>& args, void* scratch, int64_t begin, int64_t end) {
  using acc_t = typename ExpertArgs<scalar_t>::acc_t;
  constexpr int64_t kColumns = kOuterColumns<scalar_t>;
  const int64_t d_hidden = args.d_hidden();
  for (int64_t e = 0; e < args.num_experts; ++e) {
    const int64_t start = args.offsets[e], num_rows = args.offsets[e + 1] - start;
    if (num_rows == 0) continue;
    const auto finish = [&](int64_t row, int64_t n, int64_t first, int64_t num_columns, const auto& products) {
      for (int64_t i = 0; i < n; ++i) {
        acc_t* out = args.sums + args.token(start + row + i) * args.d_model + first;
        for (int64_t c = 0; c < num_columns; ++c) out[c] += products[c / kColumns][i * kColumns + c % kColumns];
      }
    };
    multiply_transposed<scalar_t, acc_t>([&](int64_t i) { return args.grad_hidden + (start + i) * d_hidden; }, num_rows,
                                         args.w_in + e * d_hidden * args.d_model, d_hidden, args.d_model, begin, end,
                                         scratch, finish);
  }
  round_sums(args, begin, end);
}

// out[i][c] = sum over num_rows rows r of left(r)[i] * right(r)[c], for i in [begin, end) and all columns of out
// [.., num_columns]: the gradient of one expert's weights. More than kGradientRows rows are summed in parts.
template <typename scalar_t, typename acc_t, typename Left, typename Right>
void weight_gradient(const Left& left, const Right& right, int64_t num_rows, int64_t begin, int64_t end,
                     int64_t num_columns, void* scratch, scalar_t* out) {
  using W = Word<scalar_t>;
  constexpr int64_t kColumns = kOuterColumns<scalar_t>;
  auto* panel = static_cast<typename W::Type*>(scratch);
  auto* words = panel + kGradientRows * kColumns;
  alignas(64) acc_t sums[kGradientBlock * kColumns];
  for (int64_t block = begin; block < end; block += kGradientBlock) {
    const int64_t block_rows = std::min(kGradientBlock, end - block);
    for (int64_t first = 0; first < num_columns; first += kColumns) {
      const int64_t width = std::min(kColumns, num_columns - first);
      for (int64_t part = 0; part < num_rows; part += kGradientRows) {
        const int64_t depth = std::min(kGradientRows, num_rows - part), num_steps = (depth + W::kPack - 1) / W::kPack;
        pack_columns<scalar_t, kOuterColumns<scalar_t>>([&](int64_t r) { return right(part + r) + first; }, depth,
                                                        width, panel);
        if (first == 0 || num_rows > kGradientRows) {
          pack_columns<scalar_t, kGradientBlock>([&](int64_t r) { return left(part + r) + block; }, depth, block_rows,
                                                 words);
        }
        for (int64_t i = 0; i < block_rows; i += kOuterRows) {
          outer_rows<scalar_t>(std::min<int64_t>(kOuterRows, block_rows - i), words + i, 1, kGradientBlock, panel,
                               num_steps, part > 0, sums + i * kColumns);
        }
      }
      for (int64_t i = 0; i < block_rows; ++i) {
        store_row(out + (block + i) * num_columns + first, sums + i * kColumns, width);
      }
    }
  }
}

// Rows [begin, end) of grad_w_out of every expert; zero where an expert had no row.
template <typename scalar_t>
void expert_output_weights_backward(const ExpertArgs<scalar_t>& args, void* scratch, int64_t begin, int64_t end) {
  using acc_t = typename ExpertArgs<scalar_t>::acc_t;
  for (int64_t e = 0; e < args.num_experts; ++e) {
    const int64_t start = args.offsets[e], num_rows = args.offsets[e + 1] - start;
    scalar_t* out = args.grad_w_out + e * args.d_model * args.d_ff;
    if (num_rows == 0) std::memset(out + begin * args.d_ff, 0, (end - begin) * args.d_ff * sizeof(scalar_t));
    if (num_rows == 0) continue;
    weight_gradient<scalar_t, acc_t>([&](int64_t i) { return args.grad + args.token(start + i) * args.d_model; },
                                     [&](int64_t i) { return args.activated + (start + i) * args.d_ff; }, num_rows,
                                     begin, end, args.d_ff, scratch, out);
  }
}

// Rows [begin, end) of grad_w_in of every expert.
template <typename scalar_t>
void expert_input_weights_backward(const ExpertArgs<scalar_t>& args, void* scratch, int64_t begin, int64_t end) {
  using acc_t = typename ExpertArgs<scalar_t>::acc_t;
  const int64_t d_hidden = args.d_hidden();
  for (int64_t e = 0; e < args.num_experts; ++e) {
    const int64_t start = args.offsets[e], num_rows = args.offsets[e + 1] - start;
    scalar_t* out = args.grad_w_in + e * d_hidden * args.d_model;
    if (num_rows == 0) std::memset(out + begin * args.d_model, 0, (end - begin) * args.d_model * sizeof(scalar_t));
    if (num_rows == 0) continue;
    weight_gradient<scalar_t, acc_t>([&](int64_t i) { return args.grad_hidden + (start + i) * d_hidden; },
                                     [&](int64_t i) { return args.x + args.token(start + i) * args.d_model; }, num_rows,
                                     begin, end, args.d_model, scratch, out);
  }
}
