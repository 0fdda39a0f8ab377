// The passes of one share of the work: scores, softmaxes and products with the values of several kv heads of a leaf.
// Included by decode_attention.h.

constexpr int64_t kScoreWords = 16 * 1024;  // scores of one pass over the kv heads of a leaf: half of an L1 cache
constexpr int64_t kPassBytes = 256 * 1024;  // keys and values of one pass: half of the smallest L2 cache
constexpr int64_t kLeadBytes = 32 * 1024;   // what few rows fetch ahead of what they read

template <typename Dot, int kRows>
struct Decoder {
  using Blocks = RowBlocks<Dot, kRows>;
  static constexpr bool kInt8 = Blocks::kInt8;
  static constexpr int kChunk = Blocks::kChunk;
  static constexpr int kBlock = std::min(kRows, kInt8 ? 4 : kAccumulators / 2);  // rows of one value tile
  // Many rows on 16 registers: tiles of 2 x 6 vectors, for the sums of 2 x 4 just hide the latency of a multiplication.
  // What 6 does not divide is done in tiles of 4.
  static constexpr bool kSix = kRows == kLanes && kLanes == 8;

  const DecodeArgs& args;
  const LeafIndex& index;
  const PartialStore& store;

  // Few rows read the cache faster than their products take: then the order of positions serves the processor's own
  // prefetcher, and rows that lie a power of two apart do not push each other out of the caches.
  const bool in_order = !kInt8 && (kLanes == 16 ? kRows <= 2 : args.rows() <= kLanes);
  const bool fetches = kLanes < 16 || !in_order;
  const bool widens = kRows == kLanes && Dot::kLevels == 2 && args.rows() > kLanes;  // many rows read floats faster
  const int64_t key_block = in_order ? kTileKeys<kRows> : kLeafPadding;              // keys of a head taken in turn
  const int64_t block_tiles = kSix && Blocks{args}.vectors_at(0) == 2 ? 6 : key_block / kTileKeys<kRows>;
  // Positions whose values are taken in turn: without the registers of AVX-512 many rows want their probabilities and
  // the packed values in the first cache together.
  const int64_t value_block = in_order ? std::max(16, Dot::kPositions* kChunk) : kLanes == 16 || kInt8 ? kLeafKeys : 64;

  const Blocks blocks{args};
  Queries<Dot, kRows> queries{blocks};
  const int64_t score_rows = blocks.score_rows, key_words = blocks.key_words, key_stride = blocks.key_stride;
  const int64_t key_floats = widens ? Dot::kPack * key_stride : key_stride;  // memory of a converted key
  const int64_t value_lanes = args.padded_value_dim();
  const int64_t partial_size = args.partial_size();
  const bool native = size_of(args.cache_type) * Dot::kPack == Dot::kWordBytes;
  const bool direct_keys = native && !widens && args.key_dim == key_words * Dot::kPack;
  const bool direct_values = native && args.value_dim == value_lanes;
  const int64_t value_stride = value_lanes / Dot::kPack;
  const int64_t pass_heads = heads_of_a_pass(!in_order), shared_heads = heads_of_a_pass(true);
  Arena arena{key_block * key_floats + kLeafKeys * ((direct_values ? 0 : value_stride) + 2 * kLanes) +
              pass_heads * (score_rows * (kLeafKeys + 3) + partial_size) + 128 * kLanes};
  float* const scores = arena.take(pass_heads * score_rows * kLeafKeys);
  float* const packed = arena.take(kLeafKeys * 2 * kLanes);
  float* const digit_factor = arena.take(round_up(pass_heads * score_rows, kLanes));
  int32_t* const digit_start = reinterpret_cast<int32_t*>(arena.take(round_up(2 * pass_heads * score_rows, kLanes)));
  int32_t* const digit_sums = reinterpret_cast<int32_t*>(arena.take(kInt8 ? 8 * kLanes * kBlock : 0));
  float* const leaf_memory = arena.take(pass_heads * partial_size);
  float* const keys = arena.take(key_block * key_floats);
  float* const values = arena.take(direct_values ? 0 : kLeafKeys * value_stride);
  std::unique_ptr<Arena> states;  // of the sequences that are decoded side by side, for each kv head
  float* first_state = nullptr;
  int64_t num_states = 0;
  const Softmax<Dot, kRows> softmax{args};

  // What several sequences read stays in the second cache, as does what is fetched ahead.
  int64_t heads_of_a_pass(bool cached) const {
    const int64_t dims = args.key_dim + (args.values_are_keys ? 0 : args.value_dim);
    const int64_t bytes = kLeafKeys * dims * size_of(args.cache_type);
    const int64_t most = std::min(kScoreWords / (score_rows * kLeafKeys), cached ? kPassBytes / bytes : kScoreWords);
    return std::clamp<int64_t>(most, 1, args.num_kv_heads);
  }
  float* state(int64_t member, int64_t kv_head) const {
    return first_state + (member * args.num_kv_heads + kv_head) * partial_size;
  }
  float* scores_of(int64_t slot, int64_t first) const { return scores + (slot * score_rows + first) * kLeafKeys; }
  Digits digits_of(int64_t slot) const {
    return {digit_factor + slot * score_rows, digit_start + 2 * slot * score_rows};
  }
  static uint32_t* words(float* p) { return reinterpret_cast<uint32_t*>(p); }
  // Positions [begin, end) of the keys and of the values of a pass, as far as they are worth fetching.
  Lines keys_of(const Pass& pass, int64_t begin, int64_t end) const {
    if (!fetches) return {};
    return {pass, pass.step.k, args.k.stride[2], args.key_dim * size_of(args.cache_type), begin, end};
  }
  Lines values_of(const Pass& pass, int64_t begin, int64_t end) const {
    if (!fetches || args.values_are_keys) return {};
    return {pass, pass.step.v, args.v.stride[2], args.value_dim * size_of(args.cache_type), begin, end};
  }
  // Positions of a pass that are fetched before it begins: all where a phase is long enough to fetch the next.
  int64_t lead_of(const Pass& pass) const {
    const int64_t bytes = pass.count * args.key_dim * size_of(args.cache_type);
    return in_order ? std::max(value_block, kLeadBytes / bytes) : kLeafKeys;
  }

  // The rows of one head, converted where they cannot be multiplied as they lie: int8 and half rows without digits,
  // rows that end within a vector, and the keys that many rows share.
  void take_rows(const char* const* base, int64_t offset, int64_t count, bool direct, int64_t size, int64_t stride,
                 bool widen, float* memory, const char** out) const {
    const auto pairs = row_converter<std::conditional_t<Dot::kPack == 2, Dot, FloatDot>>;
    const auto convert = (widen ? row_converter<FloatDot> : pairs)(args.cache_type);
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
  void score(const Pass& pass, int64_t member, Ahead ahead) {
    const int64_t padded = pass.step.padded, tiles = pass.count * padded / key_block * block_tiles;
    const int64_t lines = (ahead.lines() + tiles - 1) / tiles;
    for (int64_t i = 0; i < padded; i += key_block) {
      for (int64_t slot = 0; slot < pass.count; ++slot) {
        const int64_t kv_head = pass.first + slot;
        const char* row[kLeafPadding];
        take_rows(pass.step.k + i, kv_head * args.k.stride[2], key_block, direct_keys, args.key_dim, key_floats, widens,
                  keys, row);
        blocks.each([&]<int kVectors>(int64_t first) {
          float* out = scores_of(slot, first) + i * kRows * kVectors;
          score_block<kVectors>(member, kv_head, first, row, out, ahead, first == 0 ? lines : 0);
        });
      }
    }
  }
  template <int kVectors>
  void score_block(int64_t member, int64_t kv_head, int64_t first, const char* const* row, float* out, Ahead& ahead,
                   int64_t lines) {
    constexpr int kTile = kTileKeys<kRows>;
    const uint32_t* q = queries.words(member, kv_head, first);
    [[maybe_unused]] int32_t start[2 * kLanes] = {};
    [[maybe_unused]] float factors[kLanes];
    if constexpr (kInt8) {
      for (int lane = 0; lane < kLanes; ++lane) {
        const int64_t r = first + lane / kChunk;
        factors[lane] = queries.factor(member, kv_head)[r];
        for (int level = 0; lane % kChunk == 0 && level < 2; ++level) {
          start[level * kLanes + lane] = queries.start(member, kv_head)[2 * r + level];
        }
      }
    }
    const float factor = args.softcap == 0 ? args.scale * kLog2E : args.scale;
    for (int64_t t = 0; t < key_block;) {
      float* tile = out + t / kChunk * kVectors * kLanes;
      if constexpr (kInt8) {
        score_digits<kRows>(q, start, factors, row + t, key_words / kChunk, tile);
        t += kTile;
      } else if constexpr (kAlong<Dot, kRows>) {
        for (int64_t end = t + kTile; t < end; t += kChunk, tile += kLanes) {
          score_along<Dot, kRows>(q, row + t, key_words / kLanes, factor, tile);
        }
      } else {
        t += score_keys<kVectors>(q, row + t, key_block - t, factor, tile);
      }
      ahead.fetch(lines);
    }
  }
  // The next of `left` keys against a block of rows; returns how many they are.
  template <int kVectors>
  int64_t score_keys(const uint32_t* q, const char* const* row, int64_t left, float factor, float* out) const {
    const int64_t steps = key_words / kChunk;
    if constexpr (kSix && kVectors == 2) {
      using Key = std::conditional_t<Dot::kLevels == 2, FloatDot, Dot>;
      if (left == 4 || left == 8) {
        score_tile<Key, kRows, kVectors>(q, row, Dot::kLevels * steps, factor, out);
        return 4;
      }
      score_tile<Key, kRows, kVectors, 6>(q, row, Dot::kLevels * steps, factor, out);
      return 6;
    } else if constexpr (kRows == kLanes && Dot::kLevels == 2) {
      if (widens) {
        score_tile<FloatDot, kRows, kVectors>(q, row, Dot::kLevels * steps, factor, out);
        return kTileKeys<kRows>;
      }
    }
    score_tile<Dot, kRows, kVectors>(q, row, steps, factor, out);
    return kTileKeys<kRows>;
  }

  // The sums of values of all heads of the pass.
  void multiply(const Pass& pass, Ahead ahead, float* const* leaf) {
    for (int64_t i = 0; i < pass.step.padded; i += value_block) {
      const int64_t left = pass.step.padded - i, block = std::min(value_block, left);
      for (int64_t slot = 0; slot < pass.count; ++slot) {
        const char* row[kLeafKeys];
        take_rows(pass.step.v + i, (pass.first + slot) * args.v.stride[2], block, direct_values, args.value_dim,
                  value_stride, false, values, row);
        float* out = Partial{leaf[slot], args}.outputs;
        const int64_t turns = left / block * pass.count - slot;  // to fetch what is left
        if constexpr (kInt8) {
          multiply_digits(slot, row, block, turns, out, ahead);
        } else if (kRows < kLanes || in_order) {
          multiply_few(slot, i, block, turns, DirectValues<Dot>{row}, out, ahead);
        } else {
          multiply_many(slot, i, block, turns, DirectValues<Dot>{row}, out, ahead);
        }
      }
    }
  }
  // How many lines to fetch per `steps` of what remains to be done in a phase.
  static int64_t share_of(const Ahead& ahead, int64_t steps) { return (ahead.lines() + steps - 1) / steps; }

  // `count` positions from `begin` on, by values as they lie; `turns` calls share what is left to fetch.
  void multiply_few(int64_t slot, int64_t begin, int64_t count, int64_t turns, const DirectValues<Dot>& direct,
                    float* out, Ahead& ahead) {
    constexpr int kWide = kAccumulators / kBlock;
    const int64_t tiles = (args.rows() + kBlock - 1) / kBlock * value_lanes / kLanes;
    const int64_t lines = share_of(ahead, turns * tiles * count / Dot::kPositions / kFetchUnits);  // per vector of dims
    int64_t d = 0;
    const auto columns = [&]<int kColumns>() {
      for (; d + kColumns * kLanes <= value_lanes; d += kColumns * kLanes) {
        multiply_block<1, kColumns>(slot, 0, begin, count, direct, d, out, ahead, kColumns * lines);
      }
    };
    if constexpr (kWide >= 8) columns.template operator()<8>();
    if constexpr (kWide >= 4) columns.template operator()<4>();
    columns.template operator()<2>();
  }
  // The same by values packed for two vectors of dims at a time.
  void multiply_many(int64_t slot, int64_t begin, int64_t count, int64_t turns, const DirectValues<Dot>& direct,
                     float* out, Ahead& ahead) {
    constexpr int kMost = kSix ? 6 : kBlock;
    const int64_t tiles = (args.rows() + kMost - 1) / kMost * value_lanes / (2 * kLanes);
    const int64_t units = count / Dot::kPositions, lines = share_of(ahead, turns * tiles * units / kFetchUnits);
    for (int64_t d = 0; d < value_lanes; d += 2 * kLanes) {
      pack_values(direct, units, d);
      const PackedValues source{words(packed)};
      blocks.each([&]<int kVectors>(int64_t first) {
        multiply_block<kVectors, 2>(slot, first, begin, count, source, d, out, ahead, lines);
      });
    }
  }
  void pack_values(const DirectValues<Dot>& direct, int64_t units, int64_t d) {
    float* out = packed;
    for (int64_t u = 0; u < units; ++u, out += 2 * kLanes) {
      Words pair[2];
      direct.template load<kChunk, 2>(u, d, pair);
      std::memcpy(out, pair, sizeof(pair));
    }
  }
  template <int kVectors, int kColumns, typename Values>
  void multiply_block(int64_t slot, int64_t first, int64_t begin, int64_t count, const Values& source, int64_t d,
                      float* out, Ahead& ahead, int64_t lines) {
    constexpr int64_t kStride = kVectors * kLanes, kGroup = kChunk * Dot::kPositions;
    const uint32_t* p = words(scores_of(slot, first)) + begin / kGroup * kStride;
    const auto tile = [&]<int kTile>(int64_t r) {
      value_tile<Dot, kChunk, kTile, kColumns>(p + r * kChunk, kStride, count / kGroup, source, d,
                                               out + (first + r) * value_lanes, value_lanes, begin == 0, ahead, lines);
      return kTile;
    };
    const int64_t taken = std::min<int64_t>(kVectors * kRows, args.rows() - first);
    const int64_t rows = (taken + kBlock - 1) / kBlock * kBlock;  // as far as outputs have room, and no further
    for (int64_t r = 0; r < rows;) {
      if constexpr (kSix && kColumns == 2) {
        if (const int64_t left = rows - r; left >= 12 || (left % 4 == 2 && left > 2)) {
          r += tile.template operator()<6>(r);
          continue;
        }
      }
      r += tile.template operator()<kBlock>(r);
    }
  }
  // The same for a whole leaf in digits.
  void multiply_digits(int64_t slot, const char* const* row, int64_t count, int64_t turns, float* out, Ahead& ahead) {
    if constexpr (kInt8) {
      const Digits digits = digits_of(slot);
      const int64_t groups = count / kChunk / 4;
      const int64_t tiles = (args.rows() + kBlock - 1) / kBlock * value_lanes / (2 * kLanes);
      const int64_t lines = share_of(ahead, turns * tiles * groups);
      for (int64_t r = 0; r < args.rows(); r += kBlock) {
        const int64_t first = r / kRows * kRows;
        const uint32_t* block = words(scores_of(slot, first)) + (r - first) * kChunk;
        for (int64_t d = 0; d < value_lanes; d += 4 * kLanes) {
          value_digits<kChunk, kBlock, 0>(block, groups, row, d, digits.start + 2 * r, digit_sums, ahead, lines);
          value_digits<kChunk, kBlock, 1>(block, groups, row, d, digits.start + 2 * r, digit_sums, ahead, lines);
          join_digits<kBlock>(digit_sums, digits.factor + r, out + r * value_lanes + d, value_lanes);
        }
      }
    }
  }

  // The units [begin, end) of the line of (segment, leaf, kv head).
  void run(int64_t begin, int64_t end) {
    const auto steps = std::make_unique<Step[]>(2);
    const auto segment_of = [&](int64_t unit) {
      const auto behind = [](int64_t number, const Segment& s) { return number < s.number; };
      return std::upper_bound(index.segments.begin(), index.segments.end(), unit / args.num_kv_heads, behind) - 1;
    };
    const auto pass_at = [&](int64_t unit) -> Pass {
      const int64_t kv_head = unit % args.num_kv_heads, number = unit / args.num_kv_heads;
      Step& step = steps[number % 2];
      const Segment& segment = *segment_of(unit);
      if (step.number != number) {
        locate(args, index.order[segment.begin], segment.first_leaf + number - segment.number, step);
        step.number = number;
      }
      const int64_t most = segment.sequences() == 1 ? pass_heads : shared_heads;
      return {step, kv_head, std::min({most, args.num_kv_heads - kv_head, end - unit})};
    };
    int64_t root = -1;
    if (begin < end) Ahead(keys_of(pass_at(begin), 0, lead_of(pass_at(begin))), {}).fetch(kPassBytes / 64);
    for (int64_t unit = begin; unit < end;) {
      const Pass pass = pass_at(unit);
      const Segment& segment = *segment_of(unit);
      if (segment.root != root) {
        root = segment.root;
        queries.pack(&index.order[root], segment.width);
        make_states(segment.width);
      }
      unit += pass.count;
      const int64_t lead = lead_of(pass);
      const Lines next = unit < end ? keys_of(pass_at(unit), 0, lead_of(pass_at(unit))) : Lines();
      const Ahead in_scores(keys_of(pass, lead, kLeafKeys), values_of(pass, 0, lead));
      for (int64_t i = segment.begin; i < segment.end; ++i) {
        const bool first = i == segment.begin, last = i + 1 == segment.end;
        pass.step.sequence = index.order[i];
        attend(pass, i - root, first ? in_scores : Ahead(),
               {first ? values_of(pass, lead, kLeafKeys) : Lines(), last ? next : Lines()});
      }
    }
  }
  void make_states(int64_t width) {
    if (width <= num_states) return;
    num_states = width;
    states = std::make_unique<Arena>(width * args.num_kv_heads * partial_size);
    first_state = states->take(0);
  }
  // One pass of one sequence: its partials become the states, or are folded into them, or are stored for later.
  void attend(const Pass& pass, int64_t member, const Ahead& in_scores, const Ahead& in_products) {
    const int64_t b = pass.step.sequence, leaf_number = pass.step.leaf - index.first_leaf[b];
    const bool stored = store.slot[b] >= 0;
    float* leaf[kScoreWords / kLeafKeys];
    for (int64_t slot = 0; slot < pass.count; ++slot) {
      const int64_t h = pass.first + slot;
      leaf[slot] = stored             ? store.at(args, store.slot[b] + leaf_number * args.num_kv_heads + h)
                   : leaf_number == 0 ? state(member, h)
                                      : leaf_memory + slot * partial_size;
    }
    score(pass, member, in_scores);
    for (int64_t slot = 0; slot < pass.count; ++slot) {
      blocks.each([&]<int kVectors>(int64_t first) {
        float* s = scores_of(slot, first);
        softmax.template adjust<kVectors>(pass.step, pass.first + slot, first, s);
        softmax.template normalise<kVectors>(pass.step, pass.first + slot, first, s, {leaf[slot], args},
                                             digits_of(slot));
      });
    }
    multiply(pass, in_products, leaf);
    for (int64_t slot = 0; !stored && slot < pass.count; ++slot) {
      const int64_t h = pass.first + slot;
      const Partial sum(state(member, h), args);
      if (leaf_number > 0) fold(args, sum, {leaf[slot], args});
      if (leaf_number + 1 == index.num_leaves[b]) finish(args, b, h, sum);
    }
  }
};
