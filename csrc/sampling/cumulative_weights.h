#pragma once

#include <cstdint>

namespace gossamer::sampling {

// cumulative[e] = sum of weight[i] for the positions i <= e of the row of e, for rows in [begin, end).
inline void cumulative_weights(const int64_t* rowptr, const float* weight, double* cumulative, int64_t begin,
                               int64_t end) {
  for (int64_t r = begin; r < end; ++r) {
    double sum = 0;
    for (int64_t e = rowptr[r]; e < rowptr[r + 1]; ++e) cumulative[e] = sum += weight[e];
  }
}

}  // namespace gossamer::sampling
