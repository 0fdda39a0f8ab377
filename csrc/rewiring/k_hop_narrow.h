// Blocks of few nodes are searched in sets of their own width, and once: what is found is kept, one byte per id.

#if GOSSAMER_VECTOR_BYTES >= 32

// The lowest four bits of every lane, taken out of it: their places, one byte each. A lone bit as a float has its place
// in the exponent; lanes that have none left get any place.
inline __m256i take_four(__m256i& lanes) {
  __m256i places = _mm256_setzero_si256();
  for (int i = 0; i < 4; ++i) {
    const __m256i lowest = _mm256_and_si256(lanes, _mm256_sub_epi32(_mm256_setzero_si256(), lanes));
    lanes = _mm256_xor_si256(lanes, lowest);
    const __m256i exponent = _mm256_srli_epi32(_mm256_castps_si256(_mm256_cvtepi32_ps(lowest)), 23);
    const __m256i place = _mm256_and_si256(_mm256_add_epi32(exponent, _mm256_set1_epi32(1)), _mm256_set1_epi32(31));
    places = _mm256_or_si256(places, _mm256_slli_epi32(place, 8 * i));
  }
  return places;
}

// Writes base + i for every bit i of the piece, one byte each; returns the end, behind which kFreeIds are free.
inline uint8_t* append_piece(uint32_t piece, uint32_t base, uint8_t* out) {
  for (int i = 0; i < 4; ++i, piece >>= 8, base += 8) {
    const uint64_t ids = kBitsOfByte.places[piece & 255] + base * 0x0101010101010101u;
    std::memcpy(out, &ids, sizeof(ids));
    out += __builtin_popcount(piece & 255);
  }
  return out;
}

// The sets that a level finds for up to 64 * kWords nodes, one after the other: their pieces of 32 bits, without the
// empty ones, as most are. Neither adding nor writing asks how many bits there are, but for eight pieces together.
template <int kWords>
struct FoundSets {
  static constexpr int kMaxPieces = 64 * kWords * 2 * kWords;
  uint32_t pieces[kMaxPieces + 8];
  uint8_t numbers[kMaxPieces + 8];  // of the pieces within their set
  int64_t size = 0;

  void add(const uint64_t* words) {
    const __m256i set = lanes_of(words);
    const __m256i empty = _mm256_cmpeq_epi32(set, _mm256_setzero_si256());
    const int occupied = 255 ^ _mm256_movemask_ps(_mm256_castsi256_ps(empty));
    const __m128i places = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(kBitsOfByte.places + occupied));
    const __m256i packed = _mm256_permutevar8x32_epi32(set, _mm256_cvtepu8_epi32(places));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(pieces + size), packed);
    _mm_storel_epi64(reinterpret_cast<__m128i*>(numbers + size), places);
    size += __builtin_popcount(occupied);
  }

  // The ids in all sets, one byte each; returns the end, behind which kFreeIds are free.
  uint8_t* append_ids(uint8_t* out) {
    std::fill_n(pieces + size, 8, 0);
    for (int64_t i = 0; i < size; i += 8) {
      __m256i lanes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(pieces + i));
      const __m128i number = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(numbers + i));
      const __m256i base = _mm256_mullo_epi32(_mm256_cvtepu8_epi32(number), _mm256_set1_epi32(0x20202020));
      alignas(32) uint32_t ids[8];
      _mm256_store_si256(reinterpret_cast<__m256i*>(ids), _mm256_add_epi8(take_four(lanes), base));
      const bool four_at_most = _mm256_testz_si256(lanes, lanes);
      for (int64_t j = 0; j < 8; ++j) {
        if (!four_at_most) {
          out = append_piece(pieces[i + j], 32 * numbers[i + j], out);
        } else {
          std::memcpy(out, ids + j, 4);
          out += __builtin_popcount(pieces[i + j]);
        }
      }
    }
    return out;
  }

  static __m256i lanes_of(const uint64_t* words) {
    if constexpr (kWords == 1)
      return _mm256_zextsi128_si256(_mm_loadu_si64(words));
    else if constexpr (kWords == 2)
      return _mm256_zextsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(words)));
    else
      return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words));
  }
};

#else

// The sets that a level finds for up to 64 * kWords nodes, one after the other: their words that are not zero.
template <int kWords>
struct FoundSets {
  uint64_t words[64 * kWords * kWords + 1];
  uint8_t bases[64 * kWords * kWords + 1];
  int64_t size = 0;

  void add(const uint64_t* set) {
    for (int w = 0; w < kWords; ++w) {
      words[size] = set[w];
      bases[size] = static_cast<uint8_t>(64 * w);
      size += set[w] != 0;
    }
  }

  // The ids in all sets, one byte each; returns the end.
  uint8_t* append_ids(uint8_t* out) const {
    for (int64_t i = 0; i < size; ++i) {
      for (uint64_t word = words[i]; word != 0; word &= word - 1) {
        *out++ = static_cast<uint8_t>(bases[i] + __builtin_ctzll(word));
      }
    }
    return out;
  }
};

#endif

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
  alignas(64) int32_t near[64 * kWords * kNear];
  alignas(64) uint64_t visited[64 * kWords * kWords];
  alignas(64) uint64_t sets[2][64 * kWords * kWords];
  FoundSets<kWords> level;
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
    level.size = 0;
    for (int64_t v = 0; v < num_nodes; ++v) {
      SourceSet<kWords> set = {};
      for (int j = 0; j < kNear; ++j) set.join(frontier + near[v * kNear + j]);
      for (int64_t e = rowptr[v] + kNear; e < rowptr[v + 1]; ++e) set.join(frontier + offset(e));
      set.remove(visited + v * kWords);
      uint64_t* const words = fresh + v * kWords;
      set.store(words);
      level.add(words);
      set.join(visited + v * kWords);
      set.store(visited + v * kWords);
      int32_t found = 0;
      for (int64_t w = 0; w < kUsed; ++w) found += __builtin_popcountll(words[w]);
      counts[hop * stride + v] = found;
    }
    any = level.size != 0;
    if (kept != nullptr) kept = level.append_ids(kept);
    std::swap(frontier, fresh);
  }
  return kept;
}

// Searches a block of at most kNarrowSources nodes once: counts [max_hops, stride] of its nodes and, where `kept` is
// not null, what was found behind each other: hop by hop, row by row, one byte per source, from the first node of the
// block on. Returns the end, behind which kFreeIds are free.
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
