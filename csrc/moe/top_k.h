// The k largest of a row of keys, in descending order; of equal ones the first. Keys are integers in the order of the
// numbers that they stand for, with NaN above all and -0 equal to 0.

template <typename scalar_t>
using Key = std::conditional_t<sizeof(scalar_t) == 8, int64_t, int32_t>;

template <typename scalar_t>
struct KeyVector {
  using type [[gnu::vector_size(GOSSAMER_VECTOR_BYTES)]] = Key<scalar_t>;
};
template <typename scalar_t>
using Keys = typename KeyVector<scalar_t>::type;

template <typename scalar_t>
constexpr Key<scalar_t> kLowestKey = std::numeric_limits<Key<scalar_t>>::min();

template <typename scalar_t>
inline Keys<scalar_t> load_keys(const Key<scalar_t>* p) {
  Keys<scalar_t> v;
  std::memcpy(&v, p, sizeof(v));
  return v;
}

template <typename scalar_t>
inline Keys<scalar_t> keys_of(typename Simd<scalar_t>::Vector x) {
  constexpr Key<scalar_t> kHighest = std::numeric_limits<Key<scalar_t>>::max();
  x = x + 0;  // -0 becomes 0
  const auto bits = reinterpret_cast<Keys<scalar_t>>(x);
  const auto ordered = bits ^ ((bits >> (8 * sizeof(scalar_t) - 1)) & kHighest);
  return x == x ? ordered : Keys<scalar_t>{} + kHighest;
}

// Bit l tells whether lane l is at least the bound.
template <typename scalar_t>
inline uint64_t lanes_at_least(Keys<scalar_t> v, Keys<scalar_t> bound) {
#if GOSSAMER_VECTOR_BYTES == 64
  if constexpr (sizeof(scalar_t) == 4) return _mm512_cmpge_epi32_mask((__m512i)v, (__m512i)bound);
#elif GOSSAMER_VECTOR_BYTES == 32
  if constexpr (sizeof(scalar_t) == 4) {
    return static_cast<uint32_t>(_mm256_movemask_ps((__m256)(v >= bound)));
  }
#endif
  uint64_t bits = 0;
  for (int64_t l = 0; l < Simd<scalar_t>::kLanes; ++l) bits |= static_cast<uint64_t>(v[l] >= bound[l]) << l;
  return bits;
}

template <typename scalar_t>
inline Key<scalar_t> lowest_lane(Keys<scalar_t> v) {
#if GOSSAMER_VECTOR_BYTES == 64
  if constexpr (sizeof(scalar_t) == 4) return _mm512_reduce_min_epi32((__m512i)v);
#endif
  Key<scalar_t> lowest = v[0];
  for (int64_t l = 1; l < Simd<scalar_t>::kLanes; ++l) lowest = std::min(lowest, v[l]);
  return lowest;
}

constexpr int64_t kFewKeys = 64;

// A key that at least k keys reach: the k-th of the maxima of at least k bins. keys: whole vectors, num of them.
template <typename scalar_t>
inline Key<scalar_t> reached_by_k(const Key<scalar_t>* keys, int64_t num, int64_t k) {
  constexpr int64_t kLanes = Simd<scalar_t>::kLanes;
  if (k > kFewKeys) return kLowestKey<scalar_t>;
  Keys<scalar_t> bins[kFewKeys / kLanes];
  const int64_t num_bins = (k + kLanes - 1) / kLanes;  // in vectors
  for (int64_t b = 0; b < num_bins; ++b) {
    bins[b] = load_keys<scalar_t>(keys + b * kLanes);
    for (int64_t i = b + num_bins; i < num / kLanes; i += num_bins) {
      const Keys<scalar_t> v = load_keys<scalar_t>(keys + i * kLanes);
      bins[b] = v > bins[b] ? v : bins[b];
    }
  }
  Key<scalar_t> flat[kFewKeys];
  std::memcpy(flat, bins, num_bins * sizeof(bins[0]));
  const Keys<scalar_t> highest = Keys<scalar_t>{} + std::numeric_limits<Key<scalar_t>>::max();
  Keys<scalar_t> bound = highest;
  for (int64_t b = 0; b < num_bins; ++b) {
    Keys<scalar_t> larger{};  // how many maxima exceed each one
    for (int64_t i = 0; i < num_bins * kLanes; ++i) larger -= (Keys<scalar_t>{} + flat[i]) > bins[b];
    const Keys<scalar_t> mine = larger < static_cast<Key<scalar_t>>(k) ? bins[b] : highest;
    bound = mine < bound ? mine : bound;
  }
  return lowest_lane<scalar_t>(bound);
}

// out[0 .. k) from few candidates in ascending order of their ids: the rank of each is the number of those before it.
template <typename scalar_t>
inline void rank_few(const Key<scalar_t>* keys, const int32_t* candidates, int64_t num, int64_t k, int32_t* out) {
  constexpr int64_t kLanes = Simd<scalar_t>::kLanes;
  Key<scalar_t> few[kFewKeys + kLanes], positions[kLanes];
  for (int64_t i = 0; i < num; ++i) few[i] = keys[candidates[i]];
  std::fill_n(few + num, kLanes, kLowestKey<scalar_t>);
  for (int64_t first = 0; first < num; first += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) positions[l] = first + l;
    const Keys<scalar_t> mine = load_keys<scalar_t>(few + first), position = load_keys<scalar_t>(positions);
    Keys<scalar_t> rank{};
    for (int64_t i = 0; i < num; ++i) {
      const Keys<scalar_t> other = Keys<scalar_t>{} + few[i], at = Keys<scalar_t>{} + static_cast<Key<scalar_t>>(i);
      rank -= (other > mine) | ((other == mine) & (at < position));
    }
    for (int64_t l = 0; l < std::min(kLanes, num - first); ++l) {
      if (rank[l] < k) out[rank[l]] = candidates[first + l];
    }
  }
}

// keys [num], num a multiple of the lanes, filled up with the lowest key; candidates: scratch for num ids.
template <typename scalar_t>
inline void top_k(const Key<scalar_t>* keys, int64_t num, int64_t k, int32_t* candidates, int32_t* out) {
  constexpr int64_t kLanes = Simd<scalar_t>::kLanes, kWord = 64;
  const Keys<scalar_t> bound = Keys<scalar_t>{} + reached_by_k<scalar_t>(keys, num, k);
  int64_t found = 0;
  for (int64_t first = 0; first < num; first += kWord) {
    uint64_t word = 0;
    for (int64_t i = 0; i < std::min(kWord, num - first); i += kLanes) {
      word |= lanes_at_least<scalar_t>(load_keys<scalar_t>(keys + first + i), bound) << i;
    }
    for (; word != 0; word &= word - 1) candidates[found++] = static_cast<int32_t>(first + __builtin_ctzll(word));
  }
  if (found <= kFewKeys) return rank_few<scalar_t>(keys, candidates, found, k, out);
  std::partial_sort(candidates, candidates + k, candidates + found,
                    [keys](int32_t a, int32_t b) { return keys[a] > keys[b] || (keys[a] == keys[b] && a < b); });
  std::copy_n(candidates, k, out);
}
