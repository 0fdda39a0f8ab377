// Reads single columns of a row in Elias-Fano code (elias_fano.h). Compiled once per instruction set (foreach_isa.h):
// counting ones and finding the i-th of them is one instruction each where the processor has it. No includes here.

constexpr int64_t kDecodeWhole = 24;  // columns of a row that is decoded as a whole, whatever is read of it

#if defined(__x86_64__) && GOSSAMER_VECTOR_BYTES >= 32  // compiled for avx2 or more, which come with both

inline int64_t count_ones(uint64_t word) { return __builtin_popcountll(word); }

// Place of the one number `rank`, counted from 0; the word has more ones than that.
inline int64_t select_one(uint64_t word, int64_t rank) { return __builtin_ctzll(_pdep_u64(uint64_t{1} << rank, word)); }

#else

constexpr uint64_t kEachByte = 0x0101010101010101;

// Byte i holds the number of ones in bytes 0 to i (Vigna 2008, Broadword implementation of rank/select queries).
inline uint64_t byte_ranks(uint64_t word) {
  word -= (word >> 1) & 0x5555555555555555;
  word = (word & 0x3333333333333333) + ((word >> 2) & 0x3333333333333333);
  return ((word + (word >> 4)) & 0x0f0f0f0f0f0f0f0f) * kEachByte;
}

inline int64_t count_ones(uint64_t word) { return static_cast<int64_t>(byte_ranks(word) >> 56); }

// Place of the one number `rank`, counted from 0; the word has more ones than that.
inline int64_t select_one(uint64_t word, int64_t rank) {
  const uint64_t ranks = byte_ranks(word), high_bits = kEachByte << 7;
  const uint64_t not_above = ((rank * kEachByte | high_bits) - ranks) & high_bits;
  const int shift = static_cast<int>(count_ones(not_above)) * 8;
  rank -= static_cast<int64_t>((ranks << 8 >> shift) & 0xff);
  uint64_t byte = (word >> shift) & 0xff;
  for (; rank > 0; --rank) byte &= byte - 1;
  return shift + std::countr_zero(byte);
}

#endif

// Place of one number i in the string of ones.
inline int64_t find_one(const uint8_t* counts, const uint8_t* high, int64_t num_counts, int64_t i) {
  int64_t block = 0;  // the last one with at most i ones before it
  for (int64_t size = num_counts; size > 0; size /= 2) {
    const int64_t middle = block + (size + 1) / 2;
    if (sampling::load_word<uint32_t>(counts + 4 * (middle - 1)) <= i) block = middle;
  }
  int64_t rank = block > 0 ? i - sampling::load_word<uint32_t>(counts + 4 * (block - 1)) : i;
  for (int64_t word = block * (sampling::kBlockBits / 64);; ++word) {
    const uint64_t ones = sampling::load_word(high + 8 * word);
    const int64_t size = count_ones(ones);
    if (rank < size) return 64 * word + select_one(ones, rank);
    rank -= size;
  }
}

// col[j] = column place[j] - begin of a row of `size`; `scratch` has room for the row.
inline void read_columns(const uint8_t* code, int64_t size, int64_t num_nodes, const int64_t* place, int64_t begin,
                         int64_t count, int64_t* scratch, int64_t* col) {
  if (size <= kDecodeWhole || size <= 4 * count) {
    sampling::decode_row(code, size, num_nodes, scratch);
    for (int64_t j = 0; j < count; ++j) col[j] = scratch[place[j] - begin];
    return;
  }
  const sampling::RowCode shape(num_nodes, size);
  const uint8_t* const high = code + shape.high_begin();
  for (int64_t j = 0; j < count; ++j) {
    const int64_t i = place[j] - begin;
    const int64_t upper = find_one(code, high, shape.num_counts, i) - i;
    col[j] = upper << shape.low_bits | sampling::read_bits(code, shape.low_place(i), shape.low_bits);
  }
}
