// Bit-parallel breadth-first search. Every node carries a set of up to 512 sources, one bit each, so that one vector
// operation moves all of them along an edge. A level takes, for every node v of a block,
//   fresh[v] = (union of frontier[u] over in-neighbours u of v) without visited[v];  visited[v] |= fresh[v]
// and fresh[v] holds exactly the sources at distance `level` from v: the same bits for every instruction set.

template <int kWords>
struct SourceSet {
  static constexpr int kLanes = std::min<int>(GOSSAMER_VECTOR_BYTES / sizeof(uint64_t), kWords);
  static constexpr int kVectors = kWords / kLanes;
  using Vector [[gnu::vector_size(kLanes * sizeof(uint64_t))]] = uint64_t;
  Vector vectors[kVectors];

  static Vector load(const uint64_t* words) {
    Vector v;
    std::memcpy(&v, words, sizeof(v));
    return v;
  }
  void join(const uint64_t* words) {
    for (int i = 0; i < kVectors; ++i) vectors[i] |= load(words + i * kLanes);
  }
  void remove(const uint64_t* words) {
    for (int i = 0; i < kVectors; ++i) vectors[i] &= ~load(words + i * kLanes);
  }
  void store(uint64_t* words) const {
    for (int i = 0; i < kVectors; ++i) std::memcpy(words + i * kLanes, &vectors[i], sizeof(Vector));
  }
};

constexpr int kFreeIds = 8;  // that emit_word may write behind its end

#if GOSSAMER_VECTOR_BYTES >= 32
// places[b]: the places of the bits of a byte b, ascending, one byte each.
struct BitsOfByte {
  uint64_t places[256];
};
constexpr BitsOfByte kBitsOfByte = [] {
  BitsOfByte table = {};
  for (int byte = 0; byte < 256; ++byte) {
    int num_bits = 0;
    for (int bit = 0; bit < 8; ++bit) {
      if (byte >> bit & 1) table.places[byte] |= static_cast<uint64_t>(bit) << (8 * num_bits++);
    }
  }
  return table;
}();

// Writes base + i for every bit i of the word, ascending; returns the end. A few bits one by one, more of them eight
// places at a time, neither asking how many there are: a branch that has to guess costs more than either.
inline int32_t* emit_word(uint64_t word, int32_t base, int32_t* out) {
  constexpr int kFew = 4;
  const int64_t count = __builtin_popcountll(word);
  if (count <= kFew) {
    for (int i = 0; i < kFew; ++i, word &= word - 1) {
      out[i] = base + static_cast<int32_t>(_tzcnt_u64(word));
    }
    return out + count;
  }
  for (int i = 0; i < 8; ++i, word >>= 8, base += 8) {
    const uint8_t byte = word & 255;
    const __m128i places = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kBitsOfByte.places + byte));
    const __m256i ids = _mm256_add_epi32(_mm256_cvtepu8_epi32(places), _mm256_set1_epi32(base));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), ids);
    out += __builtin_popcount(byte);
  }
  return out;
}
#else
inline int32_t* emit_word(uint64_t word, int32_t base, int32_t* out) {
  for (; word != 0; word &= word - 1) *out++ = base + __builtin_ctzll(word);
  return out;
}
#endif

// Writes the ids of the sources in num_words words, of which the first is first_source, ascending; returns how many
// there are. What lies behind them, before `limit`, is free.
inline int64_t emit_words(const uint64_t* words, int64_t num_words, int64_t first_source, int32_t* out,
                          const int32_t* limit) {
  int64_t found = 0;
  for (int64_t w = 0; w < num_words; ++w) found += __builtin_popcountll(words[w]);
  int32_t last_ids[kMaxRunWords * 64 + kFreeIds];
  const bool fits = out + found + kFreeIds <= limit;
  int32_t* end = fits ? out : last_ids;
  for (int64_t w = 0; w < num_words; ++w) {
    if (words[w] != 0) end = emit_word(words[w], static_cast<int32_t>(first_source + 64 * w), end);
  }
  if (!fits) std::copy_n(last_ids, found, out);
  return found;
}

// Every source has visited itself; nothing else is known of the nodes in [begin, end).
template <typename index_t>
void start_search(const Search<index_t>& search, int64_t begin, int64_t end) {
  const int64_t first = (begin - search.first_node) * kSetWords;
  std::memset(search.visited + first, 0, (end - begin) * kSetWords * sizeof(uint64_t));
  const int64_t last_source = std::min(search.first_source + search.num_sources, end);
  for (int64_t v = std::max(search.first_source, begin); v < last_source; ++v) {
    const int64_t bit = v - search.first_source;
    search.visited[(v - search.first_node) * kSetWords + bit / 64] |= uint64_t(1) << (bit % 64);
  }
  std::memcpy(search.frontier + first, search.visited + first, (end - begin) * kSetWords * sizeof(uint64_t));
}

// The sources in the frontiers of the neighbours of v.
template <typename index_t>
inline SourceSet<kSetWords> reached_from(const Search<index_t>& search, int64_t v) {
  SourceSet<kSetWords> set = {};
  for (int64_t e = search.rowptr[v]; e < search.rowptr[v + 1]; ++e) {
    set.join(search.frontier + (search.col[e] - search.first_node) * kSetWords);
  }
  return set;
}

// The same for the first level, where only a source is in its own frontier: none has to be read.
template <typename index_t>
inline SourceSet<kSetWords> sources_beside(const Search<index_t>& search, int64_t v) {
  uint64_t words[kSetWords] = {};
  for (int64_t e = search.rowptr[v]; e < search.rowptr[v + 1]; ++e) {
    const uint64_t bit = search.col[e] - search.first_source;
    if (bit < static_cast<uint64_t>(search.num_sources)) words[bit / 64] |= uint64_t(1) << (bit % 64);
  }
  SourceSet<kSetWords> set = {};
  set.join(words);
  return set;
}

// One level for nodes in [begin, end); calls found(node, words) with the sources that reach the node for the first
// time. Returns whether there were any.
template <typename index_t, typename Found>
inline bool advance(const Search<index_t>& search, int64_t hop, int64_t begin, int64_t end, const Found& found) {
  bool any = false;
  for (int64_t v = begin; v < end; ++v) {
    SourceSet<kSetWords> set = hop == 0 ? sources_beside(search, v) : reached_from(search, v);
    uint64_t* visited = search.visited + (v - search.first_node) * kSetWords;
    uint64_t* fresh = search.fresh + (v - search.first_node) * kSetWords;
    set.remove(visited);
    set.store(fresh);
    set.join(visited);
    set.store(visited);
    any |= found(v, fresh);
  }
  return any;
}

// counts[v] += number of sources found at v.
template <typename index_t>
bool count_level(const Search<index_t>& search, int64_t hop, int32_t* counts, int64_t begin, int64_t end) {
  return advance(search, hop, begin, end, [counts](int64_t v, const uint64_t* fresh) {
    int64_t found = 0;
    for (int w = 0; w < kSetWords; ++w) found += __builtin_popcountll(fresh[w]);
    counts[v] += static_cast<int32_t>(found);
    return found != 0;
  });
}

// The level alone: what it found is in search.fresh.
template <typename index_t>
bool find_level(const Search<index_t>& search, int64_t hop, int64_t begin, int64_t end) {
  return advance(search, hop, begin, end, [](int64_t, const uint64_t* fresh) {
    uint64_t any = 0;
    for (int w = 0; w < kSetWords; ++w) any |= fresh[w];
    return any != 0;
  });
}

// Appends the sources in the words [num_words] of every row in [begin, end) to that row, whose end so far is ends[v]
// and at last col[starts[v + 1]]. words[0] are those of row `begin`; in_order: one thread writes the rows one after the
// other and whole, so that it may write over those still to come.
inline void emit_rows(const uint64_t* words, int64_t num_words, int64_t first_source, bool in_order, int64_t* ends,
                      const int64_t* starts, int32_t* col, int64_t begin, int64_t end) {
  for (int64_t v = begin; v < end; ++v) {
    const int32_t* limit = col + starts[in_order ? end : v + 1];
    ends[v] += emit_words(words + (v - begin) * num_words, num_words, first_source, col + ends[v], limit);
  }
}

// Appends the ids of words, one byte each: bases[i] + j for every bit j of words[i], ascending; returns the end. Most
// words of a sparse set have kSure bits or less: so many are written without asking how many there are, and what lies
// behind the end is free.
inline uint8_t* append_ids(const uint64_t* __restrict words, const uint8_t* __restrict bases, int64_t num_words,
                           uint8_t* __restrict out) {
  constexpr int kSure = 6;
  for (int64_t i = 0; i < num_words; ++i) {
    uint64_t word = words[i];
    const int base = bases[i];
    uint8_t* const end = out + __builtin_popcountll(word);
    for (int j = 0; j < kSure; ++j) {
      *out++ = static_cast<uint8_t>(base + (word ? __builtin_ctzll(word) : 64));  // one instruction: tzcnt
      word &= word - 1;
    }
    for (; word != 0; word &= word - 1) *out++ = static_cast<uint8_t>(base + __builtin_ctzll(word));
    out = end;
  }
  return out;
}

// The whole search of a block of at most 64 * kUsed nodes, in sets of kWords words of which kUsed have nodes. Nodes
// have few neighbours and many levels: the first kNear of them are laid out once, filled up with the node itself (which
// adds nothing, as it has visited all that is in its frontier), so that no branch has to guess a degree at every level.
template <int kWords, int kUsed, typename index_t>
inline uint8_t* search_narrow(const Search<index_t>& search, int64_t max_hops, int32_t* counts, int64_t stride,
                              uint8_t* kept) {
  constexpr int kNear = 4;
  const int64_t num_nodes = search.num_nodes, size = num_nodes * kWords;
  const int64_t* rowptr = search.rowptr + search.first_node;
  const auto offset = [&](int64_t e) { return static_cast<int32_t>((search.col[e] - search.first_node) * kWords); };
  int32_t near[64 * kWords * kNear];
  uint64_t visited[64 * kWords * kWords], sets[2][64 * kWords * kWords];
  uint64_t occupied[64 * kWords * kWords + kWords];
  uint8_t bases[64 * kWords * kWords + kWords];
  uint64_t* frontier = sets[0];
  uint64_t* fresh = sets[1];
  std::memset(visited, 0, size * sizeof(uint64_t));
  for (int64_t v = 0; v < num_nodes; ++v) {
    for (int64_t j = 0; j < kNear; ++j) {
      const int64_t e = rowptr[v] + j;
      near[v * kNear + j] = e < rowptr[v + 1] ? offset(e) : static_cast<int32_t>(v * kWords);
    }
    visited[v * kWords + v / 64] = uint64_t(1) << (v % 64);
  }
  std::memcpy(frontier, visited, size * sizeof(uint64_t));
  counts += search.first_node;
  bool any = true;
  for (int64_t hop = 0; hop < max_hops && any; ++hop) {
    any = false;
    int64_t num_occupied = 0;
    for (int64_t v = 0; v < num_nodes; ++v) {
      SourceSet<kWords> set = {};
      for (int j = 0; j < kNear; ++j) set.join(frontier + near[v * kNear + j]);
      for (int64_t e = rowptr[v] + kNear; e < rowptr[v + 1]; ++e) set.join(frontier + offset(e));
      set.remove(visited + v * kWords);
      uint64_t* const words = fresh + v * kWords;
      set.store(words);
      set.join(visited + v * kWords);
      set.store(visited + v * kWords);
      int32_t found = 0;
      for (int64_t w = 0; w < kUsed; ++w) {
        found += __builtin_popcountll(words[w]);
        occupied[num_occupied] = words[w];
        bases[num_occupied] = static_cast<uint8_t>(64 * w);
        num_occupied += words[w] != 0;
      }
      counts[hop * stride + v] = found;
    }
    any = num_occupied != 0;
    if (kept != nullptr) kept = append_ids(occupied, bases, num_occupied, kept);
    std::swap(frontier, fresh);
  }
  return kept;
}

// Searches a block of at most kNarrowSources nodes once: counts [max_hops, stride] of its nodes and, where `kept` is
// not null, what was found behind each other: hop by hop, row by row, one byte per source, from the first node of the
// block on. Returns the end; what lies up to kNarrowSources bytes behind it is free.
template <typename index_t>
uint8_t* keep_narrow(const Search<index_t>& search, int64_t max_hops, int32_t* counts, int64_t stride, uint8_t* kept) {
  if (search.num_nodes <= 64) return search_narrow<1, 1>(search, max_hops, counts, stride, kept);
  if (search.num_nodes <= 128) return search_narrow<2, 2>(search, max_hops, counts, stride, kept);
  if (search.num_nodes <= 192) return search_narrow<4, 3>(search, max_hops, counts, stride, kept);
  return search_narrow<4, 4>(search, max_hops, counts, stride, kept);
}

// out[i] = first_node + kept[i]
inline void widen_ids(const uint8_t* kept, int64_t num_ids, int32_t first_node, int32_t* out) {
  for (int64_t i = 0; i < num_ids; ++i) out[i] = first_node + kept[i];
}
