// Tables from which one weighted edge of a row is drawn in constant time (AliasLaw of row_sampler.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "sampling/row_sampler.h"

namespace gossamer::sampling {

// A position keeps its proposal with the probability in the upper 32 bits, else gives it to the row offset in the
// lower.
inline uint64_t alias_entry(double keep, int64_t other) {
  const double scaled = std::min(keep * 0x1p32, 0x1p32 - 1);
  return static_cast<uint64_t>(scaled) << 32 | static_cast<uint64_t>(other);
}

// Fills alias[row] from weight[row] for rows in [begin, end), by the method of Vose 1991. A row without mass gets
// kNoMass; a position of weight 0 is never drawn, whatever the rounding.
inline void alias_table(const int64_t* rowptr, const float* weight, uint64_t* alias, int64_t begin, int64_t end) {
  std::vector<double> share;
  std::vector<int64_t> small, large;
  for (int64_t r = begin; r < end; ++r) {
    const float* w = weight + rowptr[r];
    uint64_t* out = alias + rowptr[r];
    const int64_t size = rowptr[r + 1] - rowptr[r];
    double total = 0;
    for (int64_t i = 0; i < size; ++i) total += w[i];
    if (!(total > 0)) {
      std::fill_n(out, size, kNoMass);
      continue;
    }
    share.assign(w, w + size);
    small.clear();
    large.clear();
    for (int64_t i = 0; i < size; ++i) ((share[i] *= size / total) < 1 ? small : large).push_back(i);
    const int64_t heaviest = std::max_element(w, w + size) - w;
    while (!small.empty() && !large.empty()) {
      const int64_t i = small.back(), other = large.back();
      small.pop_back();
      out[i] = alias_entry(share[i], other);
      share[other] -= 1 - share[i];
      if (share[other] >= 1) continue;
      large.pop_back();
      small.push_back(other);
    }
    for (const int64_t i : large) out[i] = alias_entry(1, i);
    for (const int64_t i : small) out[i] = w[i] > 0 ? alias_entry(1, i) : alias_entry(0, heaviest);
  }
}

}  // namespace gossamer::sampling
