// The rows of a problem in blocks, and the queries packed for them. Included by decode_attention.h.

// kRows query rows per vector: all rows of small groups, kLanes of them at a time otherwise.
template <typename Dot, int kRows>
struct RowBlocks {
  static constexpr bool kInt8 = Dot::kPack == 4;
  static constexpr int kChunk = kLanes / kRows;
  static constexpr int kStep = kAlong<Dot, kRows> ? kLanes : kChunk;  // words of a key per step of a score

  const DecodeArgs& args;
  const int64_t rows = args.padded_rows();
  const int64_t score_rows = kRows == kLanes ? rows : kRows;
  const int64_t key_words = round_up((args.key_dim + Dot::kPack - 1) / Dot::kPack, kStep);
  const int64_t key_stride = round_up(key_words, kLanes);

  int64_t vectors_at(int64_t row) const { return !kInt8 && kRows == kLanes && args.rows() - row > kLanes ? 2 : 1; }

  // Calls visit.operator()<vectors>(first) for every block of rows.
  template <typename Visit>
  void each(const Visit& visit) const {
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
};

// Queries of the sequences that are decoded side by side, as words [row block][step][level][vector][lane].
template <typename Dot, int kRows>
class Queries {
  using Blocks = RowBlocks<Dot, kRows>;
  static constexpr bool kInt8 = Blocks::kInt8;
  static constexpr int kLevels = Dot::kLevels, kChunk = Blocks::kChunk;

 public:
  explicit Queries(const Blocks& blocks) : blocks_(blocks) {}

  const uint32_t* words(int64_t member, int64_t kv_head, int64_t first) const {
    return reinterpret_cast<const uint32_t*>(words_ + at(member, kv_head) * head_words_ +
                                             first * blocks_.key_words * kLevels);
  }
  const float* factor(int64_t member, int64_t kv_head) const { return factor_ + at(member, kv_head) * blocks_.rows; }
  const int32_t* start(int64_t member, int64_t kv_head) const {
    return start_ + at(member, kv_head) * blocks_.rows * 2;
  }

  // Packs the queries of the given sequences.
  void pack(const int64_t* sequences, int64_t count) {
    const DecodeArgs& args = blocks_.args;
    const int64_t heads = count * args.num_kv_heads;
    if (heads > capacity_) {
      capacity_ = heads;
      arena_ = std::make_unique<Arena>(heads * (head_words_ + 3 * blocks_.rows) + 4 * blocks_.key_stride * kLanes + 64);
      words_ = arena_->take(heads * head_words_);
      factor_ = arena_->take(heads * blocks_.rows);
      start_ = reinterpret_cast<int32_t*>(arena_->take(heads * blocks_.rows * 2));
      row_ = arena_->take(4 * blocks_.key_stride * kLanes);
    }
    for (int64_t member = 0; member < count; ++member) {
      for (int64_t h = 0; h < args.num_kv_heads; ++h) {
        for (int64_t first = 0; first < args.rows(); first += kRows * blocks_.vectors_at(first)) {
          pack_block(sequences[member], member, h, first);
        }
      }
    }
  }

 private:
  int64_t at(int64_t member, int64_t kv_head) const { return member * blocks_.args.num_kv_heads + kv_head; }

  void pack_block(int64_t sequence, int64_t member, int64_t kv_head, int64_t first) {
    const DecodeArgs& args = blocks_.args;
    const int64_t vectors = blocks_.vectors_at(first);
    float* block = words_ + at(member, kv_head) * head_words_ + first * blocks_.key_words * kLevels;
    const int64_t row_words = kInt8 ? 4 * blocks_.key_words : kLevels * blocks_.key_stride;
    const auto convert = row_converter<std::conditional_t<kLevels == 2, FloatDot, Dot>>(args.query_type);
    for (int64_t v = 0; v < vectors; ++v) {
      for (int64_t r = 0; r < kRows; ++r) {
        float* row = row_ + r * row_words;
        const int64_t number = first + v * kRows + r;
        if (number >= args.rows()) {
          std::fill_n(row, row_words, 0.0f);
        } else {
          const char* q = args.q + args.flat(sequence, number, kv_head) * args.key_dim * size_of(args.query_type);
          convert(q, args.key_dim, row_words, reinterpret_cast<uint32_t*>(row));
        }
        if constexpr (kInt8) {
          const int64_t head_row = at(member, kv_head) * blocks_.rows + first;
          pack_digits(row, r, factor_ + head_row, start_ + 2 * head_row, block);
        }
      }
      if constexpr (!kInt8) interleave(row_words, vectors, block + v * kLanes);
    }
  }

  // block[w / kChunk][level][vector][r * kChunk + w % kChunk] = word kLevels w + level of row r, or along the key
  // block[w / kLanes][level][r][w % kLanes].
  void interleave(int64_t row_words, int64_t vectors, float* block) const {
    if constexpr (kChunk == 1) {
      const int64_t words = kLevels * blocks_.key_words;
      for (int64_t w = 0; w < words; w += kLanes) {
        Vector tile[kLanes];
        for (int r = 0; r < kLanes; ++r) tile[r] = Float::load(row_ + r * row_words + w);
        transpose(tile);
        for (int i = 0; i < std::min<int64_t>(kLanes, words - w); ++i) {
          Float::store(block + (w + i) * vectors * kLanes, tile[i]);
        }
      }
    } else if constexpr (kAlong<Dot, kRows>) {
      for (int64_t i = 0; i < kLevels * blocks_.key_words; ++i) {
        const int64_t w = i / kLevels;
        float* lane = block + (w / kLanes * kLevels + i % kLevels) * kRows * kLanes + w % kLanes;
        for (int r = 0; r < kRows; ++r) lane[r * kLanes] = row_[r * row_words + i];
      }
    } else {
      for (int64_t i = 0; i < kLevels * blocks_.key_words; ++i) {
        const int64_t w = i / kLevels, lane = (w / kChunk * kLevels + i % kLevels) * kLanes + w % kChunk;
        for (int r = 0; r < kRows; ++r) block[lane + r * kChunk] = row_[r * row_words + i];
      }
    }
  }

  // The digits of one row, for lanes r * kChunk .. of one block of rows. The first lane starts the sums.
  void pack_digits(const float* row, int64_t r, float* factor, int32_t* start, float* block) const {
    const DecodeArgs& args = blocks_.args;
    float largest = 0, not_finite = 0;  // NaN where an entry is not finite
    for (int64_t d = 0; d < args.key_dim; ++d) {
      largest = std::max(largest, std::abs(row[d]));
      not_finite += row[d] * 0;
    }
    const float inverse = largest > 0 ? kDigitRange / largest : 0;
    int32_t sums[2] = {};
    for (int64_t w = 0; w < blocks_.key_words; ++w) {
      uint32_t word[2] = {};
      for (int i = 0; i < 4; ++i) {
        const int32_t n = static_cast<int32_t>(std::nearbyint(row[4 * w + i] * inverse));
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
    factor[r] = scale * largest / kDigitRange + not_finite;
    for (int level = 0; level < 2; ++level) start[2 * r + level] = -128 * sums[level];
  }

  const Blocks& blocks_;
  const int64_t head_words_ = blocks_.rows * blocks_.key_words * kLevels;
  int64_t capacity_ = 0;
  std::unique_ptr<Arena> arena_;
  float *words_ = nullptr, *factor_ = nullptr, *row_ = nullptr;
  int32_t* start_ = nullptr;
};
