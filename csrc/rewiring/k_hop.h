#include "rewiring/set_bits.h"

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

// Every source has visited itself; nothing else is known of the nodes in [begin, end). Frontiers are not read before
// the second level.
template <typename index_t>
void start_search(const Search<index_t>& search, int64_t begin, int64_t end) {
  const int64_t first = (begin - search.first_node) * kSetWords;
  std::memset(search.visited + first, 0, (end - begin) * kSetWords * sizeof(uint64_t));
  const int64_t last_source = std::min(search.first_source + search.num_sources, end);
  for (int64_t v = std::max(search.first_source, begin); v < last_source; ++v) {
    const int64_t bit = v - search.first_source;
    search.visited[(v - search.first_node) * kSetWords + bit / 64] |= uint64_t(1) << (bit % 64);
  }
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

// The same where rows ascend and passes follow each other: edges before next[v] are of sources of earlier passes.
template <typename index_t>
inline SourceSet<kSetWords> next_sources_beside(const Search<index_t>& search, int64_t* next, int64_t v) {
  uint64_t words[kSetWords] = {};
  const int64_t end_source = search.first_source + search.num_sources;
  int64_t e = next[v];
  for (; e < search.rowptr[v + 1] && search.col[e] < end_source; ++e) {
    const int64_t bit = search.col[e] - search.first_source;
    words[bit / 64] |= uint64_t(1) << (bit % 64);
  }
  next[v] = e;
  SourceSet<kSetWords> set = {};
  set.join(words);
  return set;
}

// One level for nodes in [begin, end), to which the sources reached(node) come; calls found(node, words) with those
// that do for the first time. Returns whether there were any.
template <typename index_t, typename Reached, typename Found>
inline bool advance(const Search<index_t>& search, int64_t begin, int64_t end, const Reached& reached,
                    const Found& found) {
  bool any = false;
  for (int64_t v = begin; v < end; ++v) {
    SourceSet<kSetWords> set = reached(v);
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

inline int32_t size_of_set(const uint64_t* words) {
  int64_t size = 0;
  for (int w = 0; w < kSetWords; ++w) size += __builtin_popcountll(words[w]);
  return static_cast<int32_t>(size);
}

// counts[v] += number of sources found at v.
struct Tally {
  int32_t* counts;

  bool operator()(int64_t v, const uint64_t* fresh) const {
    const int32_t found = size_of_set(fresh);
    counts[v] += found;
    return found != 0;
  }
};

template <typename index_t>
bool count_level(const Search<index_t>& search, int64_t hop, int32_t* counts, int64_t begin, int64_t end) {
  const auto reached = [&](int64_t v) { return hop == 0 ? sources_beside(search, v) : reached_from(search, v); };
  return advance(search, begin, end, reached, Tally{counts});
}

// The first level of a pass, of rows that ascend.
template <typename index_t>
bool count_first_level(const Search<index_t>& search, int64_t* next, int32_t* counts, int64_t begin, int64_t end) {
  const auto reached = [&](int64_t v) { return next_sources_beside(search, next, v); };
  return advance(search, begin, end, reached, Tally{counts});
}

// The last level of a pass, but for the first: no set is kept of what it finds.
template <typename index_t>
void count_last_level(const Search<index_t>& search, int32_t* counts, int64_t begin, int64_t end) {
  for (int64_t v = begin; v < end; ++v) {
    SourceSet<kSetWords> set = reached_from(search, v);
    set.remove(search.visited + (v - search.first_node) * kSetWords);
    uint64_t words[kSetWords];
    set.store(words);
    counts[v] += size_of_set(words);
  }
}

// The level alone: what it found is in search.fresh.
template <typename index_t>
bool find_level(const Search<index_t>& search, int64_t hop, int64_t begin, int64_t end) {
  const auto reached = [&](int64_t v) { return hop == 0 ? sources_beside(search, v) : reached_from(search, v); };
  return advance(search, begin, end, reached, [](int64_t, const uint64_t* fresh) {
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

#include "rewiring/k_hop_narrow.h"
