// From sets of bits to lists of their places.

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

// Writes base + i for every bit i of the word, ascending; returns the end, behind which kFreeIds are free. A few bits
// one by one, more of them eight places at a time, neither asking how many there are: a branch that has to guess costs
// more than either.
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
