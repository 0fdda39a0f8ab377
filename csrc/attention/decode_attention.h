// out[row] = sum_j p[row, j] v[j],  p[row, j] = exp(s[row, j]) / (sum_j exp(s[row, j]) + exp(sink)),
// s[row, j] = softcap(scale <q[row], k[j]>) - slope * (position(row) - j) over the cache positions j that row sees.
// One sequence and one key/value head is one problem of num_queries * group rows, so each key and value is read once
// for all of them. Every leaf of kLeafKeys positions is a softmax of its own; fold() adds leaves in order of position.
//
// The kv heads of a leaf are computed together: their rows lie side by side in most caches, and memory is read fastest
// in the order of addresses. First all scores, then the softmaxes, then the products with the values, each over blocks
// of positions, while the block that follows is fetched.
#include "attention/decode_tiles.h"
//
#include "attention/decode_rows.h"
//
#include "attention/decode_partial.h"
//
#include "attention/decode_int8.h"
//
#include "attention/decode_softmax.h"

constexpr int64_t kScoreWords = 16 * 1024;  // scores of one pass over the kv heads of a leaf: half of an L1 cache

// kRows query rows per vector: all rows of small groups, kLanes of them at a time otherwise.
template <typename Dot, int kRows>
struct Decoder {
  static constexpr bool kInt8 = Dot::kPack == 4;
  static constexpr int kLevels = kInt8 ? 2 : 1;  // digits per query
  static constexpr int kChunk = kLanes / kRows;
  static constexpr int64_t kBlockKeys = kInt8 ? kLeafPadding : 32;  // positions that several heads read in turn
  static constexpr int kBlock = std::min(kRows, kInt8 ? 4 : kAccumulators / 2);  // rows of one value tile

  const DecodeArgs& args;
  const int64_t rows = args.padded_rows();
  const int64_t score_rows = kRows == kLanes ? rows : kRows;
  const int64_t key_words = round_up((args.key_dim + Dot::kPack - 1) / Dot::kPack, kChunk);
  const int64_t value_lanes = args.padded_value_dim();
  const int64_t partial_size = args.partial_size();
  const bool native = size_of(args.cache_type) * Dot::kPack == sizeof(uint32_t);
  const bool direct_keys = native && args.key_dim == key_words * Dot::kPack;
  const bool direct_values = native && args.value_dim == value_lanes;
  const int64_t key_stride = round_up(key_words, kLanes), value_stride = value_lanes / Dot::kPack;
  const int64_t head_words = rows * key_words * kLevels;
  const int64_t pass_heads = std::clamp<int64_t>(kScoreWords / (score_rows * kLeafKeys), 1, args.num_kv_heads);
  Arena arena{args.num_kv_heads * (head_words + 3 * rows + partial_size) + 4 * key_stride +
              kLeafKeys * (key_stride + value_stride + value_lanes) +
              pass_heads * (score_rows * (kLeafKeys + 3 + kInt8 * 2 * value_lanes) + partial_size) + 64 * kLanes};
  float* const query = arena.take(args.num_kv_heads * head_words);
  float* const query_factor = arena.take(args.num_kv_heads * rows);
  int32_t* const query_start = reinterpret_cast<int32_t*>(arena.take(args.num_kv_heads * rows * 2));
  float* const query_row = arena.take(round_up(4 * key_stride, kLanes));
  float* const keys = arena.take(kLeafKeys * key_stride);
  float* const values = arena.take(kLeafKeys * value_stride);
  float* const packed = arena.take(kLeafKeys * value_lanes);
  float* const scores = arena.take(pass_heads * score_rows * kLeafKeys);
  float* const digit_factor = arena.take(round_up(pass_heads * score_rows, kLanes));
  int32_t* const digit_start = reinterpret_cast<int32_t*>(arena.take(round_up(2 * pass_heads * score_rows, kLanes)));
  int32_t* const digit_sums =
      reinterpret_cast<int32_t*>(arena.take(kInt8 ? 2 * pass_heads * score_rows * value_lanes : 0));
  float* const leaf_memory = arena.take(pass_heads * partial_size);
  float* const states = arena.take(args.num_kv_heads * partial_size);
  const Softmax<Dot, kRows> softmax{args};

  Partial state(int64_t kv_head) const { return {states + kv_head * partial_size, args}; }
  int64_t vectors_at(int64_t row) const { return !kInt8 && kRows == kLanes && args.rows() - row > kLanes ? 2 : 1; }
  float* scores_of(int64_t slot, int64_t first) const { return scores + (slot * score_rows + first) * kLeafKeys; }
  Digits digits_of(int64_t slot) const {
    return {digit_factor + slot * score_rows, digit_start + 2 * slot * score_rows};
  }
  static uint32_t* words(float* p) { return reinterpret_cast<uint32_t*>(p); }

  // Calls visit.operator()<vectors>(first) for every block of rows.
  template <typename Visit>
  void each_row_block(const Visit& visit) const {
    for (int64_t first = 0; first < args.rows();) {
      const int64_t vectors = vectors_at(first);
      if (vectors == 2) {
        if constexpr (kRows == kLanes && !kInt8) visit.template operator()<2>(first);
      } else {
        visit.template operator()<1>(first);
      }
      first += kRows * vectors;
    }
  }

  // Queries of one sequence as words, [row block][step][vector or level][lane].
  void pack_query(int64_t sequence) {
    std::fill_n(query, args.num_kv_heads * head_words, 0);
    std::fill_n(query_factor, args.num_kv_heads * rows, 0);
    std::fill_n(query_start, args.num_kv_heads * rows * 2, 0);
    for (int64_t h = 0; h < args.num_kv_heads; ++h) {
      for (int64_t first = 0; first < args.rows(); first += kRows * vectors_at(first)) {
        pack_query_block(sequence, h, first, vectors_at(first));
      }
    }
  }
  void pack_query_block(int64_t sequence, int64_t kv_head, int64_t first, int64_t vectors) {
    float* block = query + kv_head * head_words + first * key_words * kLevels;
    const auto convert = row_converter<std::conditional_t<kInt8, FloatDot, Dot>>(args.query_type);
    for (int64_t r = 0; r < std::min(kRows * vectors, args.rows() - first); ++r) {
      const char* row = args.q + args.flat(sequence, first + r, kv_head) * args.key_dim * size_of(args.query_type);
      convert(row, args.key_dim, kInt8 ? 4 * key_words : key_stride, words(query_row));
      if constexpr (kInt8) {
        pack_digits(r, query_factor + kv_head * rows + first, query_start + 2 * (kv_head * rows + first), block);
      } else {
        for (int64_t w = 0; w < key_words; ++w) {
          const int64_t lane = (w / kChunk * vectors + r / kRows) * kLanes + r % kRows * kChunk + w % kChunk;
          block[lane] = query_row[w];
        }
      }
    }
  }
  // The digits of query_row, for lanes r * kChunk .. of one block of rows. The first lane starts the sums.
  void pack_digits(int64_t r, float* factor, int32_t* start, float* block) {
    float largest = 0;
    for (int64_t d = 0; d < args.key_dim; ++d) largest = std::max(largest, std::abs(query_row[d]));
    const float inverse = largest > 0 ? kDigitRange / largest : 0;
    int32_t sums[2] = {};
    for (int64_t w = 0; w < key_words; ++w) {
      uint32_t word[2] = {};
      for (int i = 0; i < 4; ++i) {
        const int32_t n = static_cast<int32_t>(std::nearbyint(query_row[4 * w + i] * inverse));
        const int32_t digit[2] = {(n + 128) >> 8, n - ((n + 128) >> 8) * 256};
        for (int level = 0; level < 2; ++level) {
          sums[level] += digit[level];
          word[level] |= (static_cast<uint32_t>(digit[level]) & 255) << (8 * i);
        }
      }
      const int64_t lane = w / kChunk * 2 * kLanes + r * kChunk + w % kChunk;
      for (int level = 0; level < 2; ++level) std::memcpy(block + lane + level * kLanes, &word[level], 4);
    }
    const float scale = args.softcap == 0 ? args.scale * kLog2E : args.scale;
    const float not_finite = sum_of(query_row, args.key_dim) * 0;  // NaN where an entry is not finite
    factor[r] = scale * largest / kDigitRange + not_finite;
    for (int level = 0; level < 2; ++level) start[2 * r + level] = -128 * sums[level];
  }
  static float sum_of(const float* p, int64_t size) {
    float sum = 0;
    for (int64_t i = 0; i < size; ++i) sum += p[i];
    return sum;
  }

  // The rows of one head, converted where they cannot be multiplied as they lie: int8 and half rows without digits, and
  // rows that end within a vector.
  void take_rows(const char* const* base, int64_t offset, int64_t count, bool direct, int64_t size, int64_t stride,
                 float* memory, const char** out) const {
    const auto convert = row_converter<std::conditional_t<kInt8, FloatDot, Dot>>(args.cache_type);
    for (int64_t i = 0; i < count; ++i) {
      const char* row = base[i] + offset;
      if (direct) {
        out[i] = row;
      } else {
        convert(row, size, stride, words(memory + i * stride));
        out[i] = reinterpret_cast<const char*>(memory + i * stride);
      }
    }
  }

  // Scores of all heads of the pass.
  void score(const Pass& pass) {
    const Step& step = pass.step;
    const int64_t bytes = args.key_dim * size_of(args.cache_type);
    const bool fetch_values = !args.values_are_keys;
    for (int64_t i = 0; i < step.padded; i += kBlockKeys) {
      const int64_t count = std::min(kBlockKeys, step.padded - i);
      const bool last = i + kBlockKeys >= step.padded;
      Ahead ahead = last ? ahead_of(pass, args.v, args.value_dim, 0, fetch_values ? kBlockKeys : 0)
                         : Ahead(pass, step.k, args.k.stride[2], bytes, i + kBlockKeys, i + 2 * kBlockKeys);
      for (int64_t slot = 0; slot < pass.count; ++slot) {
        const char* row[kBlockKeys];
        const int64_t kv_head = pass.first + slot;
        take_rows(step.k + i, kv_head * args.k.stride[2], count, direct_keys, args.key_dim, key_stride, keys, row);
        each_row_block([&]<int kVectors>(int64_t first) {
          score_block<kVectors>(kv_head, first, row, count, scores_of(slot, first) + i * kRows * kVectors, ahead);
        });
      }
    }
  }
  Ahead ahead_of(const Pass& pass, const CacheView& cache, int64_t dim, int64_t begin, int64_t end) const {
    const char* const* row = &cache == &args.v ? pass.step.v : pass.step.k;
    return {pass, row, cache.stride[2], dim * size_of(args.cache_type), begin, end};
  }
  template <int kVectors>
  void score_block(int64_t kv_head, int64_t first, const char* const* row, int64_t count, float* out, Ahead& ahead) {
    constexpr int kTile = kTileKeys<kRows>;
    const uint32_t* q = words(query) + kv_head * head_words + first * key_words * kLevels;
    [[maybe_unused]] int32_t start[2 * kLanes] = {};
    [[maybe_unused]] float factors[kLanes];
    if constexpr (kInt8) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const int64_t r = kv_head * rows + first + lane / kChunk;
        factors[lane] = query_factor[r];
        for (int level = 0; lane % kChunk == 0 && level < 2; ++level) {
          start[level * kLanes + lane] = query_start[2 * r + level];
        }
      }
    }
    const float factor = args.softcap == 0 ? args.scale * kLog2E : args.scale;
    for (int64_t t = 0; t < count; t += kTile) {
      if (first == 0) ahead.fetch(kTile);
      if constexpr (kInt8) {
        score_digits<kRows>(q, start, factors, row + t, key_words / kChunk, out + t / kChunk * kLanes);
      } else {
        score_tile<Dot, kRows, kVectors>(q, row + t, key_words / kChunk, factor, out + t / kChunk * kVectors * kLanes);
      }
    }
  }

  // The sums of values of all heads of the pass.
  void multiply(const Pass& pass, const Pass& next, float* const* leaf) {
    const Step& step = pass.step;
    const int64_t block = pass.count == 1 ? kLeafKeys : kBlockKeys;
    for (int64_t i = 0; i < step.padded; i += block) {
      const int64_t count = std::min(block, step.padded - i);
      Ahead ahead = i + block < step.padded ? ahead_of(pass, args.v, args.value_dim, i + block, i + 2 * block)
                                            : ahead_of(next, args.k, args.key_dim, 0, kBlockKeys);
      for (int64_t slot = 0; slot < pass.count; ++slot) {
        const char* row[kLeafKeys];
        const int64_t kv_head = pass.first + slot;
        ahead.fetch(count);
        take_rows(step.v + i, kv_head * args.v.stride[2], count, direct_values, args.value_dim, value_stride, values,
                  row);
        if constexpr (kInt8) {
          multiply_digits(slot, i, count, row, i + block >= step.padded ? leaf[slot] : nullptr);
        } else {
          const DirectValues<Dot> direct{row};
          const auto add = [&](const auto& source) {
            each_row_block([&]<int kVectors>(int64_t first) {
              multiply_block<kVectors>(slot, first, i, count, source, Partial{leaf[slot], args}.outputs);
            });
          };
          if constexpr (kRows < kLanes) {
            add(direct);
          } else {
            add(pack_values(direct, count / Dot::kPack));
          }
        }
      }
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
  template <int kVectors, typename Values>
  void multiply_block(int64_t slot, int64_t first, int64_t begin, int64_t count, const Values& source, float* out) {
    constexpr int kWide = kAccumulators / kBlock;
    const int64_t groups = count / kChunk / Dot::kPack, stride = kVectors * kLanes;
    const uint32_t* p = words(scores_of(slot, first)) + begin / kChunk / Dot::kPack * stride;
    int64_t d = 0;
    const auto columns = [&]<int kColumns>() {
      for (; d + kColumns * kLanes <= value_lanes; d += kColumns * kLanes) {
        for (int64_t r = 0; r < std::min<int64_t>(kVectors * kRows, args.rows() - first); r += kBlock) {
          value_tile<Dot, kChunk, kBlock, kColumns>(p + r * kChunk, stride, groups, source, d,
                                                    out + (first + r) * value_lanes, value_lanes, begin == 0);
        }
      }
    };
    if constexpr (kWide >= 8) columns.template operator()<8>();
    if constexpr (kWide >= 4) columns.template operator()<4>();
    columns.template operator()<2>();
  }
  // The same in digits; `leaf` is the partial to be filled where this is the last block.
  void multiply_digits(int64_t slot, int64_t begin, int64_t count, const char* const* row, float* leaf) {
    if constexpr (kInt8) {
      const Digits digits = digits_of(slot);
      for (int64_t first = 0; first < args.rows(); first += kRows) {
        const uint32_t* p = words(scores_of(slot, first)) + begin / kChunk / 2 * kLanes;
        for (int64_t r = first; r < std::min(first + kRows, args.rows()); r += kBlock) {
          int32_t* sums = digit_sums + 2 * (slot * score_rows + r) * value_lanes;
          for (int64_t i = 0; begin == 0 && i < 2 * kBlock; ++i) {
            std::fill_n(sums + i * value_lanes, value_lanes, digits.start[2 * r + i]);
          }
          const uint32_t* block = p + (r - first) * kChunk;
          for (int64_t d = 0; d < value_lanes; d += 4 * kLanes) {
            const int64_t groups = count / kChunk / 4;
            value_digits<kChunk, kBlock, 0>(block, groups, row, d, sums, 2 * value_lanes, value_lanes);
            value_digits<kChunk, kBlock, 1>(block, groups, row, d, sums, 2 * value_lanes, value_lanes);
          }
          for (int64_t i = 0; leaf && i < kBlock; ++i) {
            join_digits(sums + 2 * i * value_lanes, value_lanes, digits.factor[r + i], value_lanes,
                        Partial{leaf, args}.outputs + (r + i) * value_lanes);
          }
        }
      }
    }
  }

  // The units [begin, end) of the line of (sequence, leaf, kv head).
  void run(const LeafIndex& index, const PartialStore& store, int64_t begin, int64_t end) {
    const auto steps = std::make_unique<Step[]>(2);
    const auto leaf = std::make_unique<float*[]>(pass_heads);
    int64_t sequence = -1;
    const auto pass_at = [&](int64_t unit) -> Pass {
      const int64_t kv_head = unit % args.num_kv_heads, number = unit / args.num_kv_heads;
      const int64_t b =
          std::upper_bound(index.offsets.begin(), index.offsets.end(), number) - index.offsets.begin() - 1;
      Step& step = steps[number % 2];
      locate(args, b, index.first_leaf[b] + number - index.offsets[b], step);
      return {step, kv_head, std::min({pass_heads, args.num_kv_heads - kv_head, end - unit})};
    };
    for (int64_t unit = begin; unit < end;) {
      const Pass pass = pass_at(unit), next = pass_at(std::min(unit + pass.count, end - 1));
      const int64_t b = pass.step.sequence;
      if (b != sequence) {
        sequence = b;
        pack_query(b);
        for (int64_t h = 0; h < args.num_kv_heads; ++h) clear(args, state(h));
      }
      const bool stored = store.slot[b] >= 0;
      const int64_t first_slot = store.slot[b] + unit - index.offsets[b] * args.num_kv_heads;
      for (int64_t i = 0; i < pass.count; ++i) {
        leaf[i] = stored ? store.at(args, first_slot + i) : leaf_memory + i * partial_size;
      }
      attend(pass, next, leaf.get());
      const bool last = pass.step.leaf + 1 == index.first_leaf[b] + index.leaves(b);
      for (int64_t i = 0; !stored && i < pass.count; ++i) {
        const int64_t h = pass.first + i;
        fold(args, state(h), {leaf[i], args});
        if (last) finish(args, b, h, state(h));
      }
      unit += pass.count;
    }
  }
  void attend(const Pass& pass, const Pass& next, float* const* leaf) {
    score(pass);
    for (int64_t slot = 0; slot < pass.count; ++slot) {
      const int64_t kv_head = pass.first + slot;
      each_row_block([&]<int kVectors>(int64_t first) {
        float* s = scores_of(slot, first);
        softmax.template adjust<kVectors>(pass.step, kv_head, first, s);
        softmax.template normalise<kVectors>(pass.step, kv_head, first, s, {leaf[slot], args}, digits_of(slot));
      });
    }
    multiply(pass, next, leaf);
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
#ifdef GOSSAMER_BF16_DOT
  const bool whole = args.key_dim % 64 == 0 && args.value_dim % 64 == 0;
  if (args.query_type == Element::kBFloat16 && args.cache_type == Element::kInt8 && whole) {
    return decode_share<Int8Dot>(args, index, store, begin, end);
  }
#endif
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
