// Bit-parallel breadth-first search. Every node carries a set of up to 512 sources, one bit each, so that one vector
// operation moves all of them along an edge. A level takes, for every node v of a block,
//   fresh[v] = (union of frontier[u] over in-neighbours u of v) without visited[v];  visited[v] |= fresh[v]
// and fresh[v] holds exactly the sources at distance `level` from v: the same bits for every instruction set.

struct SourceSet {
  using Vector [[gnu::vector_size(GOSSAMER_VECTOR_BYTES)]] = uint64_t;
  static constexpr int kLanes = GOSSAMER_VECTOR_BYTES / sizeof(uint64_t);
  static constexpr int kVectors = kSetWords / kLanes;
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
    SourceSet set = {};
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
