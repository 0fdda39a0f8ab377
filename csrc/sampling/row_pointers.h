// Where the rows of a graph begin and end, in one of two forms, the same on CPU and GPU.
#pragma once

#include <cstdint>
#include <cstring>

#include "sampling/laws.h"

namespace gossamer::sampling {

// Either `plain` [num_rows + 1], or lines of 64 bytes for kLineRows rows each, 2.4 bytes per row (graph/compact.py
// makes them): a base of 64 bits, then 16 bits from it for the begin of each row and the end of the last. Of rows that
// reach further the base is ~i, and the 64-bit numbers themselves stand kWideLines lines long from line i on. A row is
// read from one cache line.
struct RowPointers {
  static constexpr int64_t kLineRows = 27;
  static constexpr int64_t kLineWords = 32;  // of 16 bits
  static constexpr int64_t kBaseWords = 4;

  const int64_t* plain = nullptr;
  const uint16_t* lines = nullptr;

  GOSSAMER_HOST_DEVICE Row row(int64_t i) const {
    if (plain != nullptr) return {plain[i], plain[i + 1]};
    const uint16_t* const line = lines + i / kLineRows * kLineWords;
    const int64_t at = i % kLineRows, base = number(line);
    if (base >= 0) return {base + line[kBaseWords + at], base + line[kBaseWords + at + 1]};
    const uint16_t* const wide = lines + ~base * kLineWords + kBaseWords * at;
    return {number(wide), number(wide + kBaseWords)};
  }

  // What row() reads first.
  GOSSAMER_HOST_DEVICE const void* address(int64_t i) const {
    return plain != nullptr ? static_cast<const void*>(plain + i) : lines + i / kLineRows * kLineWords;
  }

 private:
  GOSSAMER_HOST_DEVICE static int64_t number(const uint16_t* words) {
    int64_t value;
    memcpy(&value, words, sizeof(value));
    return value;
  }
};

}  // namespace gossamer::sampling
