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

// Sets are taken apart in pieces of as many sources as one instruction can turn into ids.
#if GOSSAMER_VECTOR_BYTES == 64
using Piece = uint16_t;
#else
using Piece = uint64_t;
#endif
constexpr int kPieceSources = 8 * sizeof(Piece);
constexpr int kSetPieces = kSetSources / kPieceSources;

// Bit i is set where piece i of the set is not empty.
inline uint32_t occupied_pieces(const uint64_t* words) {
#if GOSSAMER_VECTOR_BYTES == 64
  const __m512i set = _mm512_loadu_si512(words);
  return _mm512_test_epi16_mask(set, set);
#else
  uint32_t occupied = 0;
  for (int w = 0; w < kSetWords; ++w) occupied |= static_cast<uint32_t>(words[w] != 0) << w;
  return occupied;
#endif
}

// Writes base + i for every bit i of the piece, ascending; returns the end. What lies behind it, before `limit`, is
// free.
inline int32_t* emit_piece(Piece piece, int32_t base, int32_t* out, const int32_t* limit) {
#if GOSSAMER_VECTOR_BYTES == 64
  const __m512i ids = _mm512_add_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                                       _mm512_set1_epi32(base));
  const __m512i found = _mm512_maskz_compress_epi32(piece, ids);
  const int count = __builtin_popcount(piece);
  if (out + kPieceSources <= limit) {
    _mm512_storeu_si512(out, found);
  } else {
    _mm512_mask_storeu_epi32(out, static_cast<__mmask16>((1u << count) - 1), found);
  }
  return out + count;
#else
  for (; piece != 0; piece &= piece - 1) *out++ = base + __builtin_ctzll(piece);
  return out;
#endif
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

// One level for nodes in [begin, end); calls found(node, words) with the sources that reach the node for the first
// time. Returns whether there were any.
template <typename index_t, typename Found>
inline bool advance(const Search<index_t>& search, int64_t begin, int64_t end, const Found& found) {
  bool any = false;
  for (int64_t v = begin; v < end; ++v) {
    SourceSet<kSetWords> set = {};
    for (int64_t e = search.rowptr[v]; e < search.rowptr[v + 1]; ++e) {
      set.join(search.frontier + (search.col[e] - search.first_node) * kSetWords);
    }
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
bool count_level(const Search<index_t>& search, int32_t* counts, int64_t begin, int64_t end) {
  return advance(search, begin, end, [counts](int64_t v, const uint64_t* fresh) {
    int64_t found = 0;
    for (int w = 0; w < kSetWords; ++w) found += __builtin_popcountll(fresh[w]);
    counts[v] += static_cast<int32_t>(found);
    return found != 0;
  });
}

// Appends the sources found at v to row v, whose end so far is ends[v]. The pieces that hold any are listed first, a
// tile of nodes at a time, so that no branch has to guess how many pieces a node has.
template <typename index_t>
bool emit_level(const Search<index_t>& search, int64_t* ends, int32_t* col, int64_t begin, int64_t end) {
  constexpr int64_t kTileNodes = 64;
  int32_t pieces[kTileNodes * kSetPieces + kPieceSources];
  // Where one pass covers the block, one thread writes its rows in order: it may write over the rows still to come.
  const bool in_order = search.num_sources == search.num_nodes;
  const int32_t* last_row = in_order ? col + ends[end - 1] : nullptr;
  bool any = false;
  for (int64_t tile = begin; tile < end; tile += kTileNodes) {
    int32_t* last = pieces;
    any |= advance(search, tile, std::min(tile + kTileNodes, end), [&](int64_t v, const uint64_t* fresh) {
      const uint32_t occupied = occupied_pieces(fresh);
      for (int i = 0; i < kSetPieces; i += kPieceSources) {
        last = emit_piece(static_cast<Piece>(occupied >> i), static_cast<int32_t>((v - tile) * kSetPieces + i), last,
                          std::end(pieces));
      }
      return occupied != 0;
    });
    const auto* fresh = reinterpret_cast<const char*>(search.fresh + (tile - search.first_node) * kSetWords);
    for (const int32_t* p = pieces; p < last; ++p) {
      Piece piece;
      std::memcpy(&piece, fresh + *p * sizeof(Piece), sizeof(Piece));
      const int64_t v = tile + *p / kSetPieces;
      const int64_t source = search.first_source + *p % kSetPieces * kPieceSources;
      ends[v] = emit_piece(piece, static_cast<int32_t>(source), col + ends[v], last_row) - col;
    }
  }
  return any;
}

// The whole search of a block of at most 64 * kWords nodes, in sets of kWords words. Nodes have few neighbours and many
// levels: the first kNear of them are laid out once, filled up with the node itself (which adds nothing, as it has
// visited all that is in its frontier), so that no branch has to guess a degree at every level.
// Calls found(hop, node of the block, words).
template <int kWords, typename index_t, typename Found>
inline void search_narrow(const Search<index_t>& search, int64_t max_hops, const Found& found) {
  constexpr int kNear = 4;
  const int64_t num_nodes = search.num_nodes, size = num_nodes * kWords;
  const int64_t* rowptr = search.rowptr + search.first_node;
  const auto offset = [&](int64_t e) { return static_cast<int32_t>((search.col[e] - search.first_node) * kWords); };
  int32_t near[64 * kWords * kNear];
  uint64_t* visited = search.visited;
  uint64_t* frontier = visited + size;
  uint64_t* fresh = frontier + size;
  std::memset(visited, 0, size * sizeof(uint64_t));
  for (int64_t v = 0; v < num_nodes; ++v) {
    for (int64_t j = 0; j < kNear; ++j) {
      const int64_t e = rowptr[v] + j;
      near[v * kNear + j] = e < rowptr[v + 1] ? offset(e) : static_cast<int32_t>(v * kWords);
    }
    visited[v * kWords + v / 64] = uint64_t(1) << (v % 64);
  }
  std::memcpy(frontier, visited, size * sizeof(uint64_t));
  bool any = true;
  for (int64_t hop = 0; hop < max_hops && any; ++hop) {
    any = false;
    for (int64_t v = 0; v < num_nodes; ++v) {
      SourceSet<kWords> set = {};
      for (int j = 0; j < kNear; ++j) set.join(frontier + near[v * kNear + j]);
      for (int64_t e = rowptr[v] + kNear; e < rowptr[v + 1]; ++e) set.join(frontier + offset(e));
      set.remove(visited + v * kWords);
      set.store(fresh + v * kWords);
      set.join(visited + v * kWords);
      set.store(visited + v * kWords);
      any |= found(hop, v, fresh + v * kWords);
    }
    std::swap(frontier, fresh);
  }
}

// counts [max_hops, stride] of a block of at most kNarrowSources nodes.
template <typename index_t>
void count_narrow(const Search<index_t>& search, int64_t max_hops, int32_t* counts, int64_t stride) {
  counts += search.first_node;
  const auto run = [&](auto width) {
    constexpr int kWords = decltype(width)::value;
    search_narrow<kWords>(search, max_hops, [&](int64_t hop, int64_t v, const uint64_t* words) {
      int64_t found = 0;
      for (int w = 0; w < kWords; ++w) found += __builtin_popcountll(words[w]);
      counts[hop * stride + v] = static_cast<int32_t>(found);
      return found != 0;
    });
  };
  search.num_nodes <= 128 ? run(std::integral_constant<int, 2>{}) : run(std::integral_constant<int, 4>{});
}

// Writes base + i for every bit i of the word, ascending; returns the end. Most words of a sparse set have kSure bits
// or less: so many are written without asking how many there are, where they fit before `limit`.
inline int32_t* emit_sparse(uint64_t word, int32_t base, int32_t* out, const int32_t* limit) {
  constexpr int kSure = 4;
  int32_t* const end = out + __builtin_popcountll(word);
  const bool fits = out + kSure <= limit;
  for (int i = 0; fits && i < kSure; ++i) {
    *out++ = base + (word ? __builtin_ctzll(word) : 64);
    word &= word - 1;
  }
  for (; word != 0; word &= word - 1) *out++ = base + __builtin_ctzll(word);
  return end;
}

// Writes the sources of every row of a block of at most kNarrowSources nodes at ends [max_hops, stride], which move to
// the ends of the rows. The rows of a hop lie behind each other: all but the last may be written over the next.
template <typename index_t>
void emit_narrow(const Search<index_t>& search, int64_t max_hops, int64_t* ends, int64_t stride, int32_t* col) {
  ends += search.first_node;
  const int64_t num_words = (search.num_nodes + 63) / 64;
  const int32_t* limit = nullptr;
  const auto run = [&](auto width) {
    search_narrow<decltype(width)::value>(search, max_hops, [&](int64_t hop, int64_t v, const uint64_t* words) {
      int64_t* row = ends + hop * stride;
      if (v == 0) limit = col + row[search.num_nodes - 1];
      int32_t* out = col + row[v];
      for (int64_t w = 0; w < num_words; ++w) {
        out = emit_sparse(words[w], static_cast<int32_t>(search.first_node + 64 * w), out, limit);
      }
      const bool any = col + row[v] != out;
      row[v] = out - col;
      return any;
    });
  };
  search.num_nodes <= 128 ? run(std::integral_constant<int, 2>{}) : run(std::integral_constant<int, 4>{});
}
