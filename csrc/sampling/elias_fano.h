// Rows of ascending columns in the code of Elias (1974) and Fano (1971): about 2 + log2(num_nodes / size) bits per
// column, and any column of a row can be read without those before it.
//
// A column of n columns splits into its low bits, stored one after the other, and its high part, stored as a one in a
// string of bits: column i with high part h sets bit h + i. A row is the string of its ones, then its low bits, in
// whole bytes; how many follows from the size of the row, so that only every kGroupRows-th row has its place stored.
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

inline int bit_length(int64_t x) { return 64 - std::countl_zero(static_cast<uint64_t>(x)); }

// The shape of the code of a row of `size` columns.
struct RowCode {
  int low_bits;
  int64_t high_length;  // bits

  RowCode(int64_t num_nodes, int64_t size)
      : low_bits(std::max(bit_length(num_nodes - 1) - bit_length(size), 0)),
        high_length(size + ((num_nodes - 1) >> low_bits) + 1) {}
};

inline int64_t code_bytes(int64_t num_nodes, int64_t size) {
  if (size == 0) return 0;
  const RowCode shape(num_nodes, size);
  return (shape.high_length + size * shape.low_bits + 7) / 8;
}

inline uint64_t load_word(const uint8_t* bytes) {
  uint64_t word;
  std::memcpy(&word, bytes, sizeof(word));
  return word;
}

// At most 56 bits from any place.
inline int64_t read_bits(const uint8_t* code, int64_t place, int count) {
  return static_cast<int64_t>((load_word(code + place / 8) >> (place % 8)) & ((uint64_t{1} << count) - 1));
}

// Writes ascending columns into zeroed bytes.
template <typename index_t>
void encode_row(const index_t* col, int64_t size, int64_t num_nodes, uint8_t* code) {
  const RowCode shape(num_nodes, size);
  for (int64_t i = 0; i < size; ++i) {
    const int64_t one = (static_cast<int64_t>(col[i]) >> shape.low_bits) + i;
    code[one / 8] |= static_cast<uint8_t>(1 << (one % 8));
    for (int b = 0; b < shape.low_bits; ++b) {
      const int64_t place = shape.high_length + i * shape.low_bits + b;
      code[place / 8] |= static_cast<uint8_t>(((static_cast<int64_t>(col[i]) >> b) & 1) << (place % 8));
    }
  }
}

// All columns of a row of at least one.
template <typename index_t>
void decode_row(const uint8_t* code, int64_t size, int64_t num_nodes, index_t* col) {
  const RowCode shape(num_nodes, size);
  int64_t i = 0;
  for (int64_t word = 0; i < size; ++word) {
    for (uint64_t ones = load_word(code + 8 * word); ones != 0 && i < size; ones &= ones - 1, ++i) {
      const int64_t high = 64 * word + std::countr_zero(ones) - i;
      const int64_t low = read_bits(code, shape.high_length + i * shape.low_bits, shape.low_bits);
      col[i] = static_cast<index_t>(high << shape.low_bits | low);
    }
  }
}

constexpr uint64_t kEachByte = 0x0101010101010101;

// Byte i holds the number of ones in bytes 0 to i (Vigna 2008, Broadword implementation of rank/select queries).
inline uint64_t byte_ranks(uint64_t word) {
  word -= (word >> 1) & 0x5555555555555555;
  word = (word & 0x3333333333333333) + ((word >> 2) & 0x3333333333333333);
  return ((word + (word >> 4)) & 0x0f0f0f0f0f0f0f0f) * kEachByte;
}

// Place of the one number `rank`, counted from 0; the word has more ones than that.
inline int64_t select_one(uint64_t word, int64_t rank) {
  const uint64_t ranks = byte_ranks(word), high_bits = kEachByte << 7;
  const uint64_t not_above = ((rank * kEachByte | high_bits) - ranks) & high_bits;
  const int shift = static_cast<int>(byte_ranks(not_above) >> 56) * 8;
  rank -= static_cast<int64_t>((ranks << 8 >> shift) & 0xff);
  uint64_t byte = (word >> shift) & 0xff;
  for (; rank > 0; --rank) byte &= byte - 1;
  return shift + std::countr_zero(byte);
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

// Reads some columns of one row after the other; holds nothing but scratch memory.
class RowReader {
 public:
  // col[j] = column place[j] - row.begin of the row.
  void read(const uint8_t* code, Row row, int64_t num_nodes, const int64_t* place, int64_t count, int64_t* col) {
    if (row.size() <= kDecodeWhole || row.size() <= 4 * count) {
      if (static_cast<int64_t>(columns_.size()) < row.size()) columns_.resize(row.size());
      decode_row(code, row.size(), num_nodes, columns_.data());
      for (int64_t j = 0; j < count; ++j) col[j] = columns_[place[j] - row.begin];
    } else {
      select(code, row, num_nodes, place, count, col);
    }
  }

 private:
  static constexpr int64_t kDecodeWhole = 24;

  void select(const uint8_t* code, Row row, int64_t num_nodes, const int64_t* place, int64_t count, int64_t* col) {
    const RowCode shape(num_nodes, row.size());
    ranks_.clear();  // ones in words 0 to i
    for (int64_t seen = 0; seen < row.size(); ranks_.push_back(seen)) {
      seen += static_cast<int64_t>(byte_ranks(load_word(code + 8 * ranks_.size())) >> 56);
    }
    for (int64_t j = 0; j < count; ++j) {
      const int64_t i = place[j] - row.begin;
      const int64_t word =
          bisect(ranks_.data(), static_cast<int64_t>(ranks_.size()), [&](int64_t rank) { return rank <= i; });
      const int64_t rank = i - (word > 0 ? ranks_[word - 1] : 0);
      const int64_t high = 64 * word + select_one(load_word(code + 8 * word), rank) - i;
      const int64_t low = read_bits(code, shape.high_length + i * shape.low_bits, shape.low_bits);
      col[j] = high << shape.low_bits | low;
    }
  }

  std::vector<int64_t> columns_;
  std::vector<int64_t> ranks_;
};

}  // namespace gossamer::sampling
