// What decides a dropout, the same on CPU and GPU: the mask is a function of (seed, step, node id, feature) alone.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/random.h"

namespace gossamer {

// Feature f of a node is decided by 16 of the 64 bits of draw f / 4 (the lowest for f % 4 == 0): it is dropped where
// they are below the threshold, and multiplied by scale where not.
struct DropoutKey {
  uint64_t seed;
  uint64_t step;
  const int64_t* node_ids;  // [num_rows], or null: row i is node first_row + i
  int64_t first_row;
  uint32_t threshold;  // probability of a drop in units of 2^-16
  double scale;        // 1 / (1 - that probability), 0 where everything is dropped

  GOSSAMER_HOST_DEVICE Random random(int64_t row) const {
    return Random(seed, step, static_cast<uint64_t>(node_ids ? node_ids[row] : first_row + row));
  }
  GOSSAMER_HOST_DEVICE bool keeps(uint64_t draw, int64_t f) const {
    return (draw >> (16 * (f % 4)) & 0xffff) >= threshold;
  }
};

inline uint32_t dropout_threshold(double p) { return static_cast<uint32_t>(std::lround(p * 65536)); }

inline double dropout_scale(double p) {
  const uint32_t threshold = dropout_threshold(p);
  return threshold < 65536 ? 65536.0 / (65536 - threshold) : 0.0;
}

}  // namespace gossamer
