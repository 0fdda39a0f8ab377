// Where the rows of a cache lie, and their conversion to words and back. Included by decode_attention.h.

constexpr int64_t kLeafPadding = 4 * kLanes;  // whole groups of four int8 keys for every layout

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

// One leaf of one sequence: where its rows of the first kv head lie; the others follow at the stride of the heads.
struct Step {
  int64_t sequence = -1, leaf = -1;
  int64_t begin = 0, count = 0;  // positions [begin, begin + count)
  int64_t padded = 0;            // count rounded up; rows past the end repeat the last one and are hidden
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
  if (step.sequence == sequence && step.leaf == leaf) return;
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
  const Step& step;
  int64_t first, count;
};

// Rows that will be read soon, fetched a few at a time in the order of their addresses. A single core reads memory
// faster in that order than head by head, because the processor's own prefetcher then joins in.
class Ahead {
 public:
  Ahead(const Pass& pass, const char* const* rows, int64_t head_stride, int64_t bytes, int64_t begin, int64_t end)
      : rows_(rows),
        offset_(pass.first * head_stride),
        stride_(head_stride),
        heads_(pass.count),
        bytes_(bytes),
        position_(begin),
        end_(std::min(end, pass.step.count)) {}

  void fetch(int64_t count) {
    for (; count > 0 && position_ < end_; --count) {
      const char* row = rows_[position_] + offset_ + head_ * stride_;
      for (int64_t b = 0; b < bytes_; b += 64) __builtin_prefetch(row + b, 0, 2);
      if (++head_ < heads_) continue;
      head_ = 0;
      ++position_;
    }
  }

 private:
  const char* const* rows_;
  int64_t offset_, stride_, heads_, bytes_, position_, end_;
  int64_t head_ = 0;
};

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
