// Rows of ascending columns in the code of Elias (1974) and Fano (1971): about 2 + log2(num_nodes / size) bits per
// column, and any column of a row can be read without those before it.
//
// A column splits into its low bits, stored one after the other, and its high part, stored as a one in a string of
// bits: column i with high part h sets bit h + i. A row is how many ones stand before each block of kBlockBits of that
// string but the first (32 bits each), the string, then the low bits, in whole bytes. How many bytes follows from the
// size of the row, so that only every kGroupRows-th row has its place stored.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <vector>

#include "sampling/row_sampler.h"

namespace gossamer::sampling {

constexpr int64_t kGroupRows = 8;    // rows between two stored places
constexpr int64_t kBaseRows = 4096;  // rows that count their positions from one base; a multiple of kGroupRows
constexpr int64_t kCodePadding = 8;  // bytes that may be read behind the last row
constexpr int64_t kBlockBits = 256;  // of the string of ones, between two counts

inline int bit_length(int64_t x) { return 64 - std::countl_zero(static_cast<uint64_t>(x)); }

// The shape of the code of a row of `size` columns.
struct RowCode {
  int low_bits;
  int64_t high_length;  // bits
  int64_t num_counts;

  RowCode(int64_t num_nodes, int64_t size)
      : low_bits(std::max(bit_length(num_nodes - 1) - bit_length(size), 0)),
        high_length(size + ((num_nodes - 1) >> low_bits) + 1),
        num_counts((high_length - 1) / kBlockBits) {}

  int64_t high_begin() const { return 4 * num_counts; }                      // bytes
  int64_t low_begin() const { return 8 * high_begin() + high_length; }       // bits
  int64_t low_place(int64_t i) const { return low_begin() + i * low_bits; }  // bits
};

inline int64_t code_bytes(int64_t num_nodes, int64_t size) {
  if (size == 0) return 0;
  const RowCode shape(num_nodes, size);
  return (shape.low_place(size) + 7) / 8;
}

template <typename Word = uint64_t>
Word load_word(const uint8_t* bytes) {
  Word word;
  std::memcpy(&word, bytes, sizeof(word));
  return word;
}

// At most 56 bits from any place.
inline int64_t read_bits(const uint8_t* code, int64_t place, int count) {
  return static_cast<int64_t>((load_word(code + place / 8) >> (place % 8)) & ((uint64_t{1} << count) - 1));
}

inline void set_bit(uint8_t* code, int64_t place, int64_t bit) {
  code[place / 8] |= static_cast<uint8_t>(bit << (place % 8));
}

// Writes ascending columns into zeroed bytes.
template <typename index_t>
void encode_row(const index_t* col, int64_t size, int64_t num_nodes, uint8_t* code) {
  const RowCode shape(num_nodes, size);
  std::vector<uint32_t> counts(shape.num_counts, static_cast<uint32_t>(size));
  int64_t block = 0;
  for (int64_t i = 0; i < size; ++i) {
    const int64_t one = (static_cast<int64_t>(col[i]) >> shape.low_bits) + i;
    set_bit(code, 8 * shape.high_begin() + one, 1);
    for (; block < one / kBlockBits; ++block) counts[block] = static_cast<uint32_t>(i);
    for (int b = 0; b < shape.low_bits; ++b) {
      set_bit(code, shape.low_place(i) + b, (static_cast<int64_t>(col[i]) >> b) & 1);
    }
  }
  if (!counts.empty()) std::memcpy(code, counts.data(), counts.size() * sizeof(uint32_t));
}

// All columns of a row of at least one. Always inline: it takes the instruction set of the caller.
template <typename index_t>
[[gnu::always_inline]] inline void decode_row(const uint8_t* code, int64_t size, int64_t num_nodes, index_t* col) {
  const RowCode shape(num_nodes, size);
  const uint8_t* const high = code + shape.high_begin();
  int64_t i = 0;
  for (int64_t word = 0; i < size; ++word) {
    for (uint64_t ones = load_word(high + 8 * word); ones != 0 && i < size; ones &= ones - 1, ++i) {
      const int64_t upper = 64 * word + std::countr_zero(ones) - i;
      const int64_t lower = read_bits(code, shape.low_place(i), shape.low_bits);
      col[i] = static_cast<index_t>(upper << shape.low_bits | lower);
    }
  }
}

struct CompressedRows {
  const uint8_t* codes;
  const int64_t* offsets;     // [num_groups + 1] where the first row of each group begins in codes
  const uint32_t* positions;  // [num_nodes + 1] where each row begins, from the base of its kBaseRows rows
  const int64_t* bases;       // [num_nodes / kBaseRows + 1]
  int64_t num_nodes;

  Row row(int64_t i) const { return {begin(i), begin(i + 1)}; }
  int64_t begin(int64_t i) const { return bases[i / kBaseRows] + positions[i]; }

  const uint8_t* code(int64_t i) const {
    int64_t offset = offsets[i / kGroupRows];
    for (int64_t before = i - i % kGroupRows; before < i; ++before) {
      offset += code_bytes(num_nodes, positions[before + 1] - positions[before]);
    }
    return codes + offset;
  }

  void prefetch(int64_t i) const {
    __builtin_prefetch(positions + i);
    __builtin_prefetch(offsets + i / kGroupRows);
  }
};

// read_columns of one instruction set (read_columns.h).
using ReadColumns = void (*)(const uint8_t* code, int64_t size, int64_t num_nodes, const int64_t* place, int64_t begin,
                             int64_t count, int64_t* scratch, int64_t* col);

// Reads some columns of one row after the other; holds nothing but scratch memory.
class RowReader {
 public:
  explicit RowReader(ReadColumns read_columns) : read_columns_(read_columns) {}

  // col[j] = column place[j] - row.begin of the row.
  void read(const uint8_t* code, Row row, int64_t num_nodes, const int64_t* place, int64_t count, int64_t* col) {
    if (static_cast<int64_t>(scratch_.size()) < row.size()) scratch_.resize(row.size());
    read_columns_(code, row.size(), num_nodes, place, row.begin, count, scratch_.data(), col);
  }

  // Asks for the memory that read() will read with the same arguments.
  [[gnu::always_inline]] static void prefetch(const uint8_t* code, Row row, int64_t num_nodes, const int64_t* place,
                                              int64_t count) {
    constexpr int64_t kLine = 64, kMostLines = 8;
    if (count == 0) return;
    const RowCode shape(num_nodes, row.size());
    for (int64_t byte = kLine; byte < std::min(shape.low_begin() / 8, kMostLines * kLine); byte += kLine) {
      __builtin_prefetch(code + byte);
    }
    for (int64_t j = 0; j < count; ++j) __builtin_prefetch(code + shape.low_place(place[j] - row.begin) / 8);
  }

 private:
  const ReadColumns read_columns_;
  std::vector<int64_t> scratch_;
};

}  // namespace gossamer::sampling
