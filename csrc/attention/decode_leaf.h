// One leaf of the cache: where its rows lie, and the fetching of rows that will be read soon. Included by
// decode_attention.h.

constexpr int64_t kLeafPadding = 4 * Simd<float>::kLanes;  // whole groups of four int8 keys for every layout

inline int64_t round_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// One leaf: where its rows of the first kv head lie; the others follow at the stride of the heads.
struct Step {
  int64_t sequence = -1, leaf = -1;  // of the sequences that share the leaf, the one that is computed
  int64_t number = -1;               // of the leaf in the line
  int64_t begin = 0, count = 0;      // positions [begin, begin + count)
  int64_t padded = 0;                // count rounded up; rows past the end repeat the last one and are hidden
  const char* k[kLeafKeys];
  const char* v[kLeafKeys];
  const float* k_scale[kLeafKeys];
  const float* v_scale[kLeafKeys];
};

inline void locate_rows(const DecodeArgs& args, const CacheView& cache, const Step& step, const char** rows,
                        const float** scale) {
  for (int64_t i = 0; i < step.padded; ++i) {
    int64_t outer = step.sequence, position = step.begin + std::min(i, step.count - 1);
    if (args.block_table) {
      outer = args.block_table[step.sequence * args.max_blocks + position / args.block_size];
      position %= args.block_size;
    }
    rows[i] = cache.data + outer * cache.stride[0] + position * cache.stride[1];
    if (cache.scale) scale[i] = cache.scale + outer * cache.scale_stride[0] + position * cache.scale_stride[1];
  }
}

inline void locate(const DecodeArgs& args, int64_t sequence, int64_t leaf, Step& step) {
  step.sequence = sequence;
  step.leaf = leaf;
  const int64_t first = args.first(sequence, 0), last = args.last(sequence, args.rows() - 1);
  step.begin = std::max(leaf * kLeafKeys, first);
  step.count = std::min((leaf + 1) * kLeafKeys, last) - step.begin;
  step.padded = round_up(step.count, kLeafPadding);
  locate_rows(args, args.k, step, step.k, step.k_scale);
  locate_rows(args, args.v, step, step.v, step.v_scale);
}

// Kv heads [first, first + count) of one leaf, which are computed together: their rows lie side by side in memory.
struct Pass {
  Step& step;
  int64_t first, count;
};

// Rows of positions [begin, end) of a pass, cache line by cache line in the order of their addresses.
class Lines {
 public:
  Lines() = default;
  Lines(const Pass& pass, const char* const* rows, int64_t head_stride, int64_t bytes, int64_t begin, int64_t end)
      : rows_(rows),
        offset_(pass.first * head_stride),
        stride_(head_stride),
        heads_(pass.count),
        bytes_(bytes),
        end_(std::min(end, pass.step.count)),
        position_(begin),
        row_(empty() ? nullptr : rows[begin] + offset_) {}

  bool empty() const { return position_ >= end_; }
  int64_t left() const { return empty() ? 0 : (end_ - position_) * heads_ * ((bytes_ + 63) / 64); }

  [[gnu::always_inline]] void fetch() {
    __builtin_prefetch(row_ + byte_, 0, 2);
    if ((byte_ += 64) < bytes_) return;
    byte_ = 0;
    if (++head_ == heads_) {
      head_ = 0;
      if (++position_ == end_) return;
    }
    row_ = rows_[position_] + offset_ + head_ * stride_;
  }

 private:
  const char* const* rows_ = nullptr;
  int64_t offset_ = 0, stride_ = 0, heads_ = 0, bytes_ = 0, end_ = 0, position_ = 0;
  const char* row_ = nullptr;
  int64_t head_ = 0, byte_ = 0;
};

// Rows that will be read soon, fetched a few cache lines at a time. A single core reads memory faster in the order of
// addresses than head by head, because the processor's own prefetcher then joins in.
class Ahead {
 public:
  Ahead() = default;
  Ahead(const Lines& first, const Lines& then) : now_(first), then_(then) {}

  int64_t lines() const { return now_.left() + then_.left(); }

  [[gnu::always_inline]] void fetch(int64_t lines) {
    for (; lines > 0; --lines) {
      if (now_.empty()) now_ = std::exchange(then_, Lines());
      if (now_.empty()) return;
      now_.fetch();
    }
  }

 private:
  Lines now_, then_;
};
