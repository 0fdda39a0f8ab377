// The laws by which edges of one row are chosen, and the ways to draw from them, the same on CPU and GPU. Positions are
// indices into col; a row is the range [begin, end) of positions that may be chosen.
//
// A law proposes single edges (with replacement). Rejecting proposals that were seen before gives the successive
// sampling law, the same as Efraimidis and Spirakis 2006 (algorithm A); after a bounded number of rejections the rest
// is drawn by their exponential keys in a scan of the row, which continues the same law exactly. Whoever draws brings
// `chosen`, a set of row offsets with insert(offset), false where it was there already, and insert_or(offset, other),
// which inserts `other` there and returns what it inserted; and `scan(law, row, count, draws, out)`, which draws
// outside that set and returns how many there were. `Draws` is Random, or what gives the same numbers.
#pragma once

#include <cmath>
#include <cstdint>

#include "common/random.h"

namespace gossamer::sampling {

struct Row {
  int64_t begin;
  int64_t end;
  GOSSAMER_HOST_DEVICE int64_t size() const { return end - begin; }
};

// Edges of a row of `size` that a fan-out asks for: a number of edges, -1 for all, or below 1 a share of the row.
GOSSAMER_HOST_DEVICE inline int64_t row_fanout(double fanout, int64_t size) {
  if (fanout < 0) return size;
  return fanout < 1 ? static_cast<int64_t>(ceil(fanout * static_cast<double>(size))) : static_cast<int64_t>(fanout);
}

// Room that a sample of a row of `size` needs.
GOSSAMER_HOST_DEVICE inline int64_t row_bound(double fanout, int64_t size, bool replace) {
  const int64_t wanted = size > 0 ? row_fanout(fanout, size) : 0;
  return wanted > size && !replace ? size : wanted;
}

GOSSAMER_HOST_DEVICE inline bool takes_all(double fanout, int64_t size, int64_t count, bool replace) {
  return fanout < 0 || (!replace && count == size);
}

// Laws: whether there is anything to propose from, one proposal (-1 for none), and the weight behind the proposals.

struct UniformLaw {
  Row row;
  GOSSAMER_HOST_DEVICE bool has_mass() const { return row.size() > 0; }
  template <typename Draws>
  GOSSAMER_HOST_DEVICE int64_t propose(Draws& draws) const {
    return row.begin + static_cast<int64_t>(draws.below(row.size()));
  }
  GOSSAMER_HOST_DEVICE double weight(int64_t) const { return 1; }
};

// An alias table (Walker 1977): the probability that a position keeps its proposal, times 2^32, and the row offset that
// gets the proposal otherwise. Upper halves of all probabilities and lower halves of all offsets stand in `first`, the
// other halves in `second`, which is read once in 2^16 proposals and in rows of more than 2^16 edges; entry p stands
// `step` places after entry p - 1. A proposal that is given to its own position is void: in a row without mass all are.
struct AliasTable {
  const uint32_t* first = nullptr;
  const uint32_t* second = nullptr;
  int64_t step = 1;
};

// The whole row in proportion to its weights, in constant time.
struct AliasLaw {
  Row row;
  AliasTable alias;
  const float* weights;
  // A look at the table would be a cache miss: propose() does it.
  GOSSAMER_HOST_DEVICE bool has_mass() const { return row.size() > 0; }

  template <typename Draws>
  GOSSAMER_HOST_DEVICE int64_t propose(Draws& draws) const {
    uint32_t coin;
    const int64_t position = row.begin + static_cast<int64_t>(draws.below(row.size(), &coin));
    const uint32_t first = alias.first[position * alias.step];
    uint32_t keep = first & 0xffff0000, other = first & 0xffff;
    if (coin >> 16 == keep >> 16 || row.size() > 0x10000) {
      const uint32_t second = alias.second[position * alias.step];
      keep |= second >> 16;
      other |= second << 16;
    }
    const int64_t receiver = row.begin + other;  // chosen without a branch: it is a coin flip
    const int64_t taken = receiver == position ? -1 : receiver;
    return coin < keep ? position : taken;
  }

  GOSSAMER_HOST_DEVICE double weight(int64_t position) const { return weights[position]; }
};

// A uniform subset of `count` positions in `count` draws (Bentley and Floyd 1987, A sample of brilliance).
template <typename Draws, typename Chosen>
GOSSAMER_HOST_DEVICE int64_t floyd(Row row, int64_t count, Draws& draws, Chosen& chosen, int64_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    const int64_t newest = row.size() - count + i;
    out[i] = row.begin + chosen.insert_or(static_cast<int64_t>(draws.below(newest + 1)), newest);
  }
  return count;
}

// `count` positions with replacement; none if no position has any weight.
template <typename Law, typename Draws, typename Scan>
GOSSAMER_HOST_DEVICE int64_t repeat(const Law& law, Row row, int64_t count, Draws& draws, const Scan& scan,
                                    int64_t* out) {
  for (int64_t i = 0; i < count; ++i) {
    int64_t position = -1;
    for (int left = law.has_mass() ? 32 : 0; position < 0 && left > 0; --left) position = law.propose(draws);
    if (position < 0 && scan(law, row, 1, draws, &position) == 0) return 0;
    out[i] = position;
  }
  return count;
}

// At most `count` positions without replacement, one after the other in proportion to the weights left.
template <typename Law, typename Draws, typename Chosen, typename Scan>
GOSSAMER_HOST_DEVICE int64_t successive(const Law& law, Row row, int64_t count, Draws& draws, Chosen& chosen,
                                        const Scan& scan, int64_t* out) {
  int64_t size = 0;
  for (int64_t left = law.has_mass() ? 4 * count + 8 : 0; size < count && left > 0; --left) {
    const int64_t position = law.propose(draws);
    if (position >= 0 && chosen.insert(position - row.begin)) out[size++] = position;
  }
  return size == count ? count : size + scan(law, row, count - size, draws, out + size);
}

// The exponential key of a position: the smallest are drawn first.
template <typename Draws>
GOSSAMER_HOST_DEVICE double scan_key(double weight, Draws& draws) {
  return -log(draws.uniform()) / weight;
}

}  // namespace gossamer::sampling
