// out[row] = sum_j p[row, j] v[j],  p[row, j] = exp(s[row, j]) / (sum_j exp(s[row, j]) + exp(sink)),
// s[row, j] = softcap(scale <q[row], k[j]>) - slope * (position(row) - j) over the cache positions j that row sees.
// One sequence and one key/value head is one problem of num_queries * group rows, so each key and value is read once
// for all of them. Every leaf of kLeafKeys positions is a softmax of its own; fold() adds leaves in order of position.
#include "attention/decode_tiles.h"

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Memory of one thread, in words that are also floats.
class Arena {
 public:
  explicit Arena(int64_t words) : memory_(std::make_unique_for_overwrite<float[]>(words + 16)) {
    next_ = memory_.get() + (64 - reinterpret_cast<uintptr_t>(memory_.get()) % 64) / 4;
  }
  float* take(int64_t words) { return std::exchange(next_, next_ + words); }

 private:
  std::unique_ptr<float[]> memory_;
  float* next_;
};

// One leaf of one kv head: where its rows lie.
struct Step {
  int64_t sequence, leaf, kv_head;
  int64_t begin = 0, count = 0;  // positions [begin, begin + count)
  int64_t padded = 0;            // count rounded up; rows past the end repeat the last one and are hidden
  const char* k[kLeafKeys];
  const char* v[kLeafKeys];
  float k_scale[kLeafKeys];
  float v_scale[kLeafKeys];
};

inline void locate_rows(const DecodeArgs& args, const CacheView& cache, const Step& step, const char** rows,
                        float* scale) {
  for (int64_t i = 0; i < step.padded; ++i) {
    int64_t outer = step.sequence, position = step.begin + std::min(i, step.count - 1);
    if (args.block_table) {
      outer = args.block_table[step.sequence * args.max_blocks + position / args.block_size];
      position %= args.block_size;
    }
    const int64_t index[] = {outer, position, step.kv_head};
    const auto dot = [&](const int64_t* s) { return index[0] * s[0] + index[1] * s[1] + index[2] * s[2]; };
    rows[i] = cache.data + dot(cache.stride);
    if (cache.scale) scale[i] = cache.scale[dot(cache.scale_stride)];
  }
}

inline void locate(const DecodeArgs& args, Step& step) {
  const int64_t first = args.first(step.sequence, 0), last = args.last(step.sequence, args.rows() - 1);
  step.begin = std::max(step.leaf * kLeafKeys, first);
  step.count = std::min((step.leaf + 1) * kLeafKeys, last) - step.begin;
  step.padded = round_up(step.count, 2 * kLanes);
  locate_rows(args, args.k, step, step.k, step.k_scale);
  locate_rows(args, args.v, step, step.v, step.v_scale);
}

// Elements [begin, begin + kLanes) of a row as floats, zero past the end of the row.
template <typename scalar_t>
inline Vector load_row(const scalar_t* row, int64_t begin, int64_t size) {
  if (begin + kLanes <= size) {
    if constexpr (std::is_same_v<scalar_t, int8_t>) {
#if GOSSAMER_VECTOR_BYTES == 64
      const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(row + begin));
      return (Vector)_mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepi8_epi32(0xffff, bytes));
#else
      using Bytes [[gnu::vector_size(GOSSAMER_VECTOR_BYTES / 4)]] = int8_t;
      using Ints [[gnu::vector_size(GOSSAMER_VECTOR_BYTES)]] = int32_t;
      Bytes bytes;
      std::memcpy(&bytes, row + begin, sizeof(bytes));
      return __builtin_convertvector(__builtin_convertvector(bytes, Ints), Vector);
#endif
    } else {
      return Simd<scalar_t>::load(row + begin);
    }
  }
  Vector v = {};
  for (int64_t i = 0; begin + i < size; ++i) v[i] = static_cast<float>(row[begin + i]);
  return v;
}

// 2 kLanes neighbouring elements as bfloat16.
inline void store_pairs(Vector low, Vector high, uint32_t* out) {
#ifdef GOSSAMER_BF16_DOT
  const Words words = (Words)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low);
  std::memcpy(out, &words, sizeof(words));
#else
  Simd<BFloat16>::store(reinterpret_cast<BFloat16*>(out), low);
  Simd<BFloat16>::store(reinterpret_cast<BFloat16*>(out) + kLanes, high);
#endif
}

// One row of a cache or of the queries as words, zero past its end; exact where words are bfloat16 pairs, because the
// row is then bfloat16 or int8.
template <typename scalar_t, typename Dot>
void convert_row(const char* source, int64_t size, int64_t words, uint32_t* out) {
  const scalar_t* row = reinterpret_cast<const scalar_t*>(source);
  for (int64_t w = 0; w < words; w += kLanes) {
    if constexpr (Dot::kPack == 1) {
      Float::store(reinterpret_cast<float*>(out + w), load_row(row, w, size));
    } else {
      store_pairs(load_row(row, 2 * w, size), load_row(row, 2 * w + kLanes, size), out + w);
    }
  }
}

template <typename Dot>
auto row_converter(Element element) {
  switch (element) {
    case Element::kFloat: return convert_row<float, Dot>;
    case Element::kBFloat16: return convert_row<BFloat16, Dot>;
    case Element::kHalf: return convert_row<Half, Dot>;
    default: return convert_row<int8_t, Dot>;
  }
}

template <typename scalar_t>
void store_row(const float* row, float factor, int64_t size, char* out) {
  scalar_t* p = reinterpret_cast<scalar_t*>(out);
  int64_t d = 0;
  for (; d + kLanes <= size; d += kLanes) Simd<scalar_t>::store(p + d, factor * Float::load(row + d));
  for (; d < size; ++d) p[d] = static_cast<scalar_t>(factor * row[d]);
}

inline auto row_storer(Element element) {
  switch (element) {
    case Element::kFloat: return store_row<float>;
    case Element::kBFloat16: return store_row<BFloat16>;
    default: return store_row<Half>;
  }
}

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

inline void clear(const DecodeArgs& args, Partial state) {
  std::fill_n(state.maxima, args.padded_rows(), -kInfinity);
  std::fill_n(state.sums, args.partial_size() - args.padded_rows(), 0.0f);
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
    store(state.outputs + row * args.padded_value_dim(), sum == 0.0f ? 0.0f : factor / sum, args.value_dim,
          args.out + flat * args.value_dim * size_of(args.query_type));
    args.lse[flat] = (top + std::log2(sum)) / kLog2E;
  }
}

// kRows query rows per vector: all rows of small groups, kLanes of them at a time otherwise.
template <typename Dot, int kRows>
struct Decoder {
  static constexpr int kChunk = kLanes / kRows;
  static constexpr int kBlock = std::min(kRows, kAccumulators / 2);  // rows of one value tile

  const DecodeArgs& args;
  const int64_t rows = args.padded_rows();
  const int64_t key_words = round_up((args.key_dim + Dot::kPack - 1) / Dot::kPack, kChunk);
  const int64_t value_lanes = args.padded_value_dim();
  const int64_t partial_size = args.partial_size();
  const bool native = size_of(args.cache_type) * Dot::kPack == sizeof(uint32_t);
  const bool direct_keys = native && args.key_dim == key_words * Dot::kPack;
  const bool fetch_values = kRows < kLanes && native && !args.values_are_keys;
  const bool direct_values = native && args.value_dim == value_lanes;
  const int64_t key_stride = round_up(key_words, kLanes), value_stride = value_lanes / Dot::kPack;
  Arena arena{args.num_kv_heads * (rows * key_words + partial_size) + partial_size + key_stride +
              kLeafKeys * (2 * kLanes + value_lanes + key_stride + value_stride)};
  float* const query = arena.take(args.num_kv_heads * rows * key_words);
  float* const query_row = arena.take(key_stride);
  float* const keys = arena.take(kLeafKeys * key_stride);
  float* const values = arena.take(kLeafKeys * value_stride);
  float* const packed = arena.take(kLeafKeys * value_lanes);
  float* const scores = arena.take(kLeafKeys * 2 * kLanes);
  float* const leaf_memory = arena.take(partial_size);
  float* const states = arena.take(args.num_kv_heads * partial_size);

  Partial state(int64_t kv_head) const { return {states + kv_head * partial_size, args}; }
  int64_t vectors_at(int64_t row) const { return kRows == kLanes && args.rows() - row > kLanes ? 2 : 1; }

  // Queries of one sequence as words, [row block][step][vector][lane].
  void pack_query(int64_t sequence) {
    std::fill_n(query, args.num_kv_heads * rows * key_words, 0);
    for (int64_t h = 0; h < args.num_kv_heads; ++h) {
      for (int64_t first = 0; first < args.rows(); first += kRows * vectors_at(first)) {
        pack_query_block(sequence, h, first, vectors_at(first));
      }
    }
  }
  void pack_query_block(int64_t sequence, int64_t kv_head, int64_t first, int64_t vectors) {
    float* block = query + (kv_head * rows + first) * key_words;
    const auto convert = row_converter<Dot>(args.query_type);
    for (int64_t r = 0; r < std::min(kRows * vectors, args.rows() - first); ++r) {
      const int64_t element = args.flat(sequence, first + r, kv_head) * args.key_dim;
      convert(args.q + element * size_of(args.query_type), args.key_dim, key_stride, words(query_row));
      for (int64_t w = 0; w < key_words; ++w) {
        const int64_t lane = (w / kChunk * vectors + r / kRows) * kLanes + r % kRows * kChunk + w % kChunk;
        block[lane] = query_row[w];
      }
    }
  }
  static uint32_t* words(float* p) { return reinterpret_cast<uint32_t*>(p); }

  // Rows that cannot be multiplied where they lie: int8 and half rows, and those that end within a vector.
  void convert_rows(const char** cache_rows, int64_t count, int64_t size, int64_t stride, float* out) {
    const auto convert = row_converter<Dot>(args.cache_type);
    for (int64_t i = 0; i < count; ++i) {
      convert(cache_rows[i], size, stride, words(out + i * stride));
      cache_rows[i] = reinterpret_cast<const char*>(out + i * stride);
    }
  }

  PackedValues pack_values(const DirectValues<Dot>& direct, int64_t units) {
    for (int64_t u = 0; u < units; ++u) {
      for (int64_t d = 0; d < value_lanes; d += 2 * kLanes) {
        Words pair[2];
        direct.template load<kChunk, 2>(u, d, pair);
        std::memcpy(packed + (d / (2 * kLanes) * units + u) * 2 * kLanes, pair, sizeof(pair));
      }
    }
    return {words(packed), units};
  }

  // Scores of one row block against the leaf, in bits (log2 of the probability up to a constant).
  template <int kVectors>
  void score(const Step& step, int64_t first) {
    const uint32_t* q = words(query) + (step.kv_head * rows + first) * key_words;
    constexpr int kTile = kTileKeys<kRows>;
    const float factor = args.softcap == 0 ? args.scale * kLog2E : args.scale;
    for (int64_t i = 0; i < step.padded; i += kTile) {
      if (fetch_values && first == 0) fetch(step.v + i, kTile, args.value_dim * size_of(args.cache_type));
      score_tile<Dot, kRows, kVectors>(q, step.k + i, key_words / kChunk, factor,
                                       scores + i / kChunk * kVectors * kLanes);
    }
    if (args.k.scale || args.softcap != 0 || args.slopes) adjust<kVectors>(step, first);
    if (needs_mask(step)) mask<kVectors>(step, first);
  }
  static void fetch(const char* const* row, int64_t count, int64_t bytes) {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t b = 0; b < bytes; b += 64) __builtin_prefetch(row[i] + b, 0, 2);
    }
  }

  // The scale of an int8 key, the cap, and ALiBi.
  template <int kVectors>
  void adjust(const Step& step, int64_t first) {
    float slope[kVectors * kLanes] = {}, position[kVectors * kLanes] = {};
    for (int lane = 0; args.slopes && lane < kVectors * kLanes; ++lane) {
      const int64_t row = std::min(first + lane / kChunk, args.rows() - 1);
      slope[lane] = args.slopes[args.head(row, step.kv_head)] * kLog2E;
      position[lane] = static_cast<float>(args.position(step.sequence, row) - step.begin - lane % kChunk);
    }
    for (int64_t i = 0; i < step.padded; i += kChunk) {
      for (int v = 0; v < kVectors; ++v) {
        float* p = scores + (i / kChunk * kVectors + v) * kLanes;
        Vector s = Float::load(p);
        if (args.k.scale) s *= as_float(broadcast<kChunk>(step.k_scale + i));
        if (args.softcap != 0) s = args.softcap * kLog2E * tanh_vector(s / args.softcap);
        s -= Float::load(slope + v * kLanes) * (Float::load(position + v * kLanes) - static_cast<float>(i));
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
  void mask(const Step& step, int64_t first) {
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

  // Scores become probabilities in place, as words for the value product; maxima and sums go to the partial.
  template <int kVectors>
  void softmax(const Step& step, int64_t first, Partial leaf) {
    constexpr auto add = [](Vector a, Vector b) { return a + b; };
    constexpr int kChains =
        kRows == 1 ? 2 : 4;  // divides the groups; independent maxima and sums, or the loop waits for its own results
    const int64_t groups = step.padded / kChunk;
    for (int v = 0; v < kVectors; ++v) {
      const auto at = [&](int64_t g) { return scores + (g * kVectors + v) * kLanes; };
      Vector top[kChains], sum[kChains] = {};
      for (int i = 0; i < kChains; ++i) top[i] = Float::load(at(i));
      for (int64_t g = 0; g < groups; g += kChains) {
        for (int i = 0; i < kChains; ++i) top[i] = max_vector(top[i], Float::load(at(g + i)));
      }
      for (int i = 1; i < kChains; ++i) top[0] = max_vector(top[0], top[i]);
      top[0] = spread_chunks(top[0], max_vector);
      const Vector base = top[0] == -kInfinity ? Vector{} : top[0];
      for (int64_t g = 0; g < groups; g += Dot::kPack) {
        Vector p[Dot::kPack];
        for (int i = 0; i < Dot::kPack; ++i) {
          p[i] = exp2_vector(Float::load(at(g + i)) - base);
          sum[i] += p[i];
          if (args.v.scale) p[i] *= as_float(broadcast<kChunk>(step.v_scale + (g + i) * kChunk));
        }
        Float::store(at(g / Dot::kPack), pack_probabilities(p));
      }
      sum[0] = spread_chunks(sum[0] + sum[1], add);
      for (int r = 0; r < kRows; ++r) {
        leaf.maxima[first + v * kRows + r] = top[0][r * kChunk];
        leaf.sums[first + v * kRows + r] = sum[0][r * kChunk];
      }
    }
  }
  static Vector pack_probabilities(const Vector* p) {
    if constexpr (Dot::kPack == 1) return p[0];
    const auto round = [](Vector x) { return as_words(x) + 0x8000u; };  // to nearest; ties do not matter here
    return as_float((round(p[0]) >> 16) | (round(p[Dot::kPack - 1]) & 0xffff0000u));
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

  template <int kVectors, typename Values>
  void multiply(const Step& step, int64_t first, const Values& values, Partial leaf) {
    constexpr int kWide = kAccumulators / kBlock;
    const int64_t groups = step.padded / kChunk / Dot::kPack, stride = kVectors * kLanes;
    const uint32_t* p = reinterpret_cast<const uint32_t*>(scores);
    int64_t d = 0;
    const auto columns = [&]<int kColumns>() {
      for (; d + kColumns * kLanes <= value_lanes; d += kColumns * kLanes) {
        for (int64_t r = 0; r < std::min<int64_t>(kVectors * kRows, args.rows() - first); r += kBlock) {
          value_tile<Dot, kChunk, kBlock, kColumns>(p + r * kChunk, stride, groups, values, d,
                                                    leaf.outputs + (first + r) * value_lanes, value_lanes);
        }
      }
    };
    if constexpr (kWide >= 8) columns.template operator()<8>();
    if constexpr (kWide >= 4) columns.template operator()<4>();
    columns.template operator()<2>();
  }

  template <int kVectors, typename Values>
  void attend_block(const Step& step, int64_t first, const Values& values, Partial leaf) {
    score<kVectors>(step, first);
    softmax<kVectors>(step, first, leaf);
    multiply<kVectors>(step, first, values, leaf);
  }
  template <typename Values>
  void attend_rows(const Step& step, const Values& values, Partial leaf) {
    for (int64_t first = 0; first < args.rows();) {
      if (vectors_at(first) == 2) {
        if constexpr (kRows == kLanes) attend_block<2>(step, first, values, leaf);
        first += 2 * kLanes;
      } else {
        attend_block<1>(step, first, values, leaf);
        first += kRows;
      }
    }
  }
  void attend(Step& step, const Step& next, Partial leaf) {
    if (!direct_keys) convert_rows(step.k, step.padded, args.key_dim, key_stride, keys);
    if (!direct_values) convert_rows(step.v, step.padded, args.value_dim, value_stride, values);
    const int64_t ahead = args.key_dim * size_of(args.cache_type);
    const DirectValues<Dot> direct{step.v, next.k, ahead};
    if constexpr (kRows < kLanes) return attend_rows(step, direct, leaf);
    attend_rows(step, pack_values(direct, step.padded / Dot::kPack), leaf);
  }

  // The units [begin, end) of the line of (sequence, leaf, kv head).
  void run(const LeafIndex& index, const PartialStore& store, int64_t begin, int64_t end) {
    const auto steps = std::make_unique<Step[]>(2);
    int64_t sequence = -1;
    locate_unit(index, begin, steps[begin % 2]);
    for (int64_t unit = begin; unit < end; ++unit) {
      Step &step = steps[unit % 2], &next = steps[(unit + 1) % 2];
      locate_unit(index, std::min(unit + 1, end - 1), next);
      const int64_t b = step.sequence, h = step.kv_head, slot = store.slot[b];
      if (b != sequence) {
        sequence = b;
        pack_query(b);
        for (int64_t i = 0; i < args.num_kv_heads; ++i) clear(args, state(i));
      }
      if (slot >= 0) {
        attend(step, next, {store.at(args, slot + unit - index.offsets[b] * args.num_kv_heads), args});
        continue;
      }
      const bool last = step.leaf + 1 == index.first_leaf[b] + index.leaves(b);
      attend(step, next, {leaf_memory, args});
      fold(args, state(h), {leaf_memory, args});
      if (last) finish(args, b, h, state(h));
    }
  }
  void locate_unit(const LeafIndex& index, int64_t unit, Step& step) const {
    const int64_t leaf = unit / args.num_kv_heads;
    step.sequence = std::upper_bound(index.offsets.begin(), index.offsets.end(), leaf) - index.offsets.begin() - 1;
    step.leaf = index.first_leaf[step.sequence] + leaf - index.offsets[step.sequence];
    step.kv_head = unit % args.num_kv_heads;
    locate(args, step);
  }
};

// The share [begin, end) of the work: finishes the sequences that lie in it, stores the partials of the others.
template <typename Dot>
void decode_share(const DecodeArgs& args, const LeafIndex& index, const PartialStore& store, int64_t begin,
                  int64_t end) {
  const auto run = [&]<int kRows>() { Decoder<Dot, kRows>{args}.run(index, store, begin, end); };
  const int64_t rows = args.rows();
  if (rows == 1) return run.template operator()<1>();
  if (rows == 2) return run.template operator()<2>();
  if constexpr (kLanes > 4) {
    if (rows <= 4) return run.template operator()<4>();
  }
  if constexpr (kLanes > 8) {
    if (rows <= 8) return run.template operator()<8>();
  }
  run.template operator()<kLanes>();
}

inline void decode_attention(const DecodeArgs& args, const LeafIndex& index, const PartialStore& store, int64_t begin,
                             int64_t end) {
  if (args.query_type == Element::kBFloat16) return decode_share<Bf16Dot>(args, index, store, begin, end);
  decode_share<FloatDot>(args, index, store, begin, end);
}

// Folds the stored partials of one sequence and kv head, in the order of position.
inline void fold_partials(const DecodeArgs& args, const LeafIndex& index, const PartialStore& store, int64_t sequence,
                          int64_t kv_head) {
  std::vector<float> memory(args.partial_size());
  const Partial state(memory.data(), args);
  clear(args, state);
  for (int64_t leaf = 0; leaf < index.leaves(sequence); ++leaf) {
    fold(args, state, {store.at(args, store.slot[sequence] + leaf * args.num_kv_heads + kv_head), args});
  }
  finish(args, sequence, kv_head, state);
}
