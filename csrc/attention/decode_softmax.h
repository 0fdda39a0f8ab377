// From scores to probabilities, in place. Included by decode_attention.h.
//
// The scores of one block of rows against a leaf lie as [key / kChunk][vector][lane], in bits (log2 of the probability
// up to a constant).

inline void gather(const float* const* rows, int64_t offset, int64_t count, float* out) {
  for (int64_t i = 0; i < count; ++i) out[i] = rows[i][offset];
}

template <typename Dot, int kRows>
struct Softmax {
  static constexpr int kChunk = kLanes / kRows;
  static constexpr int kChains = kRows == 1 ? 2 : 4;  // independent maxima and sums, or a loop waits for its results

  const DecodeArgs& args;

  // The scale of an int8 key, the cap, ALiBi, and what a row does not see.
  template <int kVectors>
  void adjust(const Step& step, int64_t kv_head, int64_t first, float* scores) const {
    if (args.k.scale || args.softcap != 0 || args.slopes) bend<kVectors>(step, kv_head, first, scores);
    if (needs_mask(step)) mask<kVectors>(step, first, scores);
  }

  template <int kVectors>
  void bend(const Step& step, int64_t kv_head, int64_t first, float* scores) const {
    float slope[kVectors * kLanes] = {}, position[kVectors * kLanes] = {}, key_scale[kLeafKeys];
    for (int lane = 0; args.slopes && lane < kVectors * kLanes; ++lane) {
      const int64_t row = std::min(first + lane / kChunk, args.rows() - 1);
      slope[lane] = args.slopes[args.head(row, kv_head)] * kLog2E;
      position[lane] = static_cast<float>(args.position(step.sequence, row) - step.begin - lane % kChunk);
    }
    if (args.k.scale) gather(step.k_scale, kv_head * args.k.scale_stride[2], step.padded, key_scale);
    const bool bent = args.softcap != 0 || args.slopes;
    for (int64_t i = 0; i < step.padded; i += kChunk) {
      for (int v = 0; v < kVectors; ++v) {
        float* p = scores + (i / kChunk * kVectors + v) * kLanes;
        Vector s = Float::load(p);
        if (args.k.scale) s *= as_float(broadcast<kChunk>(key_scale + i));
        if (args.softcap != 0) s = args.softcap * kLog2E * tanh_vector(s / args.softcap);
        if (bent) s -= Float::load(slope + v * kLanes) * (Float::load(position + v * kLanes) - static_cast<float>(i));
        Float::store(p, s);
      }
    }
  }

  // True where some row does not see some key of the leaf.
  bool needs_mask(const Step& step) const {
    const int64_t last_row = args.rows() - 1;
    return step.count < step.padded || args.last(step.sequence, 0) < step.begin + step.count ||
           args.first(step.sequence, last_row) > step.begin ||
           (args.tree_mask && step.begin + step.count > args.seq_lens[step.sequence] - args.num_queries);
  }
  template <int kVectors>
  void mask(const Step& step, int64_t first, float* scores) const {
    for (int64_t r = 0; r < kRows * kVectors; ++r) {
      const int64_t row = std::min(first + r, args.rows() - 1);
      const auto hide = [&](int64_t begin, int64_t end) {
        for (int64_t i = std::max<int64_t>(begin - step.begin, 0); i < std::min(end - step.begin, step.padded); ++i) {
          scores[(i / kChunk * kVectors + r / kRows) * kLanes + r % kRows * kChunk + i % kChunk] = -kInfinity;
        }
      };
      hide(0, args.first(step.sequence, row));
      hide(std::min(args.last(step.sequence, row), step.begin + step.count), step.begin + step.padded);
      if (!args.tree_mask) continue;
      const int64_t draft = args.seq_lens[step.sequence] - args.num_queries;
      const bool* seen = args.tree_mask + step.sequence * args.tree_stride + row / args.group * args.num_queries;
      for (int64_t j = 0; j < args.num_queries; ++j) {
        if (!seen[j]) hide(draft + j, draft + j + 1);
      }
    }
  }

  // Scores become probabilities, as words for the value product; maxima and sums go to the partial. `digits` takes
  // what int8 words need beside themselves, per row: the factor that makes them probabilities, and their sums.
  template <int kVectors>
  void normalise(const Step& step, int64_t kv_head, int64_t first, float* scores, Partial leaf, Digits digits) const {
    constexpr auto add = [](Vector a, Vector b) { return a + b; };
    float value_scale[kLeafKeys];
    if (args.v.scale) gather(step.v_scale, kv_head * args.v.scale_stride[2], step.padded, value_scale);
    const int64_t groups = step.padded / kChunk;
    for (int v = 0; v < kVectors; ++v) {
      const auto at = [&](int64_t g) { return scores + (g * kVectors + v) * kLanes; };
      Vector top[kChains], sum[kChains] = {}, largest = {}, undefined = {};
      for (int i = 0; i < kChains; ++i) top[i] = Float::load(at(i));
      for (int64_t g = 0; g < groups; g += kChains) {
        for (int i = 0; i < kChains; ++i) top[i] = max_vector(top[i], Float::load(at(g + i)));
      }
      for (int i = 1; i < kChains; ++i) top[0] = max_vector(top[0], top[i]);
      top[0] = spread_chunks(top[0], max_vector);
      const Vector base = top[0] == -kInfinity ? Vector{} : top[0];
      constexpr int kStep = std::max(Dot::kPositions, 2);
      for (int64_t g = 0; g < groups; g += kStep) {
        Vector p[kStep];
#pragma GCC unroll 4
        for (int i = 0; i < kStep; ++i) {
          p[i] = exp2_vector(Float::load(at(g + i)) - base);
          sum[i % kChains] += p[i];
          if (args.v.scale) p[i] *= as_float(broadcast<kChunk>(value_scale + (g + i) * kChunk));
          if constexpr (Dot::kPositions == 4) {
            largest = max_vector(largest, p[i] < 0 ? -p[i] : p[i]);
            undefined += 0.0f * p[i];  // NaN where a scale is not finite, which the integers cannot say
          }
          if constexpr (Dot::kPositions != 2) Float::store(at(g + i), p[i]);
        }
        if constexpr (Dot::kPositions == 2) Float::store(at(g / 2), pack_pairs(p[0], p[1]));
      }
      if constexpr (kChains == 4 && kStep == 4) sum[0] += sum[2], sum[1] += sum[3];
      sum[0] = spread_chunks(sum[0] + sum[1], add);
      if constexpr (Dot::kPositions == 4) {
        largest = spread_chunks(largest, max_vector);
        pack_digits(at, groups, largest, spread_chunks(undefined, add), digits, first + v * kRows);
      }
      for (int r = 0; r < kRows; ++r) {
        leaf.maxima[first + v * kRows + r] = top[0][r * kChunk];
        leaf.sums[first + v * kRows + r] = sum[0][r * kChunk];
      }
    }
  }
  static Vector pack_pairs(Vector low, Vector high) {
    const auto round = [](Vector x) { return as_words(x) + 0x8000u; };  // to nearest; ties do not matter here
    return as_float((round(low) >> 16) | (round(high) & 0xffff0000u));
  }

  // Two digits of 8 bits per probability, four keys to a word: first the high digits of a group, then the low ones.
  template <typename At>
  static void pack_digits(const At& at, int64_t groups, Vector largest, Vector undefined, Digits digits, int64_t row) {
    const Vector inverse = largest > 0 ? kDigitRange / largest : Vector{};
    Ints high_sum = {}, low_sum = {};
    for (int64_t g = 0; g < groups; g += 4) {
      Words high = {}, low = {};
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) {
        const Ints whole = round_ints(Float::load(at(g + i)) * inverse), top = (whole + 128) >> 8;
        const Ints rest = whole - (top << 8);
        high_sum += top;
        low_sum += rest;
        high |= ((Words)top & 255) << (8 * i);
        low |= ((Words)rest & 255) << (8 * i);
      }
      Float::store(at(g / 2), as_float(high));
      Float::store(at(g / 2 + 1), as_float(low));
    }
    constexpr auto add = [](Vector a, Vector b) { return a + b; };
    const Vector sums[] = {spread_chunks(__builtin_convertvector(high_sum, Vector), add),  // exact: below 2^24
                           spread_chunks(__builtin_convertvector(low_sum, Vector), add)};
    for (int r = 0; r < kRows; ++r) {
      digits.factor[row + r] = largest[r * kChunk] / kDigitRange + undefined[r * kChunk];
      for (int level = 0; level < 2; ++level) {
        digits.start[2 * (row + r) + level] = -128 * static_cast<int32_t>(sums[level][r * kChunk]);
      }
    }
  }

  // Combines the kChunk lanes of every row, in all of its lanes.
  template <typename Combine>
  static Vector spread_chunks(Vector x, Combine combine) {
    for (int half = kChunk / 2; half > 0; half /= 2) {
      Vector other;
      for (int i = 0; i < kLanes; ++i) other[i] = x[i ^ half];
      x = combine(x, other);
    }
    return x;
  }
};
