// Tables from which one weighted edge of a row is drawn in constant time (AliasLaw of row_sampler.h).
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "sampling/row_sampler.h"

namespace gossamer::sampling {

// Where the table of one row is written (AliasTable of laws.h).
struct AliasRow {
  uint32_t* first;
  uint32_t* second;

  // Position i keeps its proposal with probability `keep`, else gives it to row offset `other`.
  void set(int64_t i, double keep, int64_t other) const {
    const uint32_t scaled = static_cast<uint32_t>(std::min(keep * 0x1p32, 0x1p32 - 1));
    first[i] = (scaled & 0xffff0000) | (other & 0xffff);
    second[i] = scaled << 16 | static_cast<uint32_t>(other) >> 16;
  }
};

// Fills the tables of rows [begin, end) from weight[num_edges], by the method of Vose 1991. A position of weight 0 is
// never drawn, whatever the rounding.
inline void alias_table(const int64_t* rowptr, const float* weight, uint32_t* first, uint32_t* second, int64_t begin,
                        int64_t end) {
  std::vector<double> share;
  std::vector<int64_t> small, large;
  for (int64_t r = begin; r < end; ++r) {
    const float* w = weight + rowptr[r];
    const AliasRow out{first + rowptr[r], second + rowptr[r]};
    const int64_t size = rowptr[r + 1] - rowptr[r];
    double total = 0;
    for (int64_t i = 0; i < size; ++i) total += w[i];
    if (!(total > 0)) {
      for (int64_t i = 0; i < size; ++i) out.set(i, 0, i);
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
      out.set(i, share[i], other);
      share[other] -= 1 - share[i];
      if (share[other] >= 1) continue;
      large.pop_back();
      small.push_back(other);
    }
    for (const int64_t i : large) out.set(i, 1, i);
    for (const int64_t i : small) out.set(i, w[i] > 0, w[i] > 0 ? i : heaviest);
  }
}

}  // namespace gossamer::sampling
