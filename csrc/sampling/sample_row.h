// One row of neighbour sampling without memory but that of its result: what a GPU thread does. The same draws, and so
// the same positions, as RowSampler (row_sampler.h), which remembers what it has chosen in a hash table.
#pragma once

#include <cstdint>

#include "sampling/laws.h"

namespace gossamer::sampling {

// A row's graph and what is to be drawn from it; weight and alias are null for a uniform choice.
template <typename index_t>
struct RowRequest {
  const int64_t* rowptr;
  const index_t* col;
  const float* weight;
  const uint64_t* alias;
  const int64_t* edge_ids;  // may be null: the positions
  double fanout;
  uint64_t seed, stream;
  bool replace;
};

// The set of the row offsets that were written to `out`: whoever inserts one writes it next.
struct ChosenList {
  const int64_t* out;
  int64_t begin;
  int64_t size = 0;

  GOSSAMER_HOST_DEVICE bool contains(int64_t offset) const {
    for (int64_t i = 0; i < size; ++i) {
      if (out[i] == begin + offset) return true;
    }
    return false;
  }

  GOSSAMER_HOST_DEVICE bool insert(int64_t offset) {
    if (contains(offset)) return false;
    ++size;
    return true;
  }
};

// Draws outside a list by going over the row once per drawn position: the smallest key above the one before.
struct ScanAgain {
  const ChosenList& chosen;

  template <typename Law>
  GOSSAMER_HOST_DEVICE int64_t operator()(const Law& law, Row row, int64_t count, Random& random, int64_t* out) const {
    const Random start = random;
    double last_key = -1;  // keys are not negative; equal ones go by position
    int64_t last = -1, size = 0;
    for (; size < count; ++size) {
      double best_key = 0;
      int64_t best = -1;
      random = start;
      for (int64_t p = row.begin; p < row.end; ++p) {
        const double weight = law.weight(p);
        if (!(weight > 0) || chosen.contains(p - row.begin)) continue;
        const double key = scan_key(weight, random);
        const bool is_left = key > last_key || (key == last_key && p > last);
        if (is_left && (best < 0 || key < best_key)) {
          best_key = key;
          best = p;
        }
      }
      if (best < 0) break;
      out[size] = last = best;
      last_key = best_key;
    }
    return size;
  }
};

// Writes the chosen positions of the row of `target` to `out`, and returns their number, at most row_bound.
template <typename index_t>
GOSSAMER_HOST_DEVICE int64_t sample_row(const RowRequest<index_t>& from, int64_t target, int64_t* out) {
  const Row row{from.rowptr[target], from.rowptr[target + 1]};
  const int64_t count = row_bound(from.fanout, row.size(), from.replace);
  int64_t size = 0;
  if (takes_all(from.fanout, row.size(), count, from.replace)) {
    for (int64_t p = row.begin; p < row.end; ++p) {
      if (!from.weight || from.weight[p] > 0) out[size++] = p;
    }
    return size;
  }
  Random random(from.seed, from.stream, target);
  ChosenList chosen{out, row.begin};
  const ScanAgain scan{chosen};
  if (from.weight) {
    const AliasLaw law{row, from.alias, from.weight};
    if (!from.replace) return successive(law, row, count, random, chosen, scan, out);
    return repeat(law, row, count, random, scan, out);
  }
  if (!from.replace) return floyd(row, count, random, chosen, out);
  return repeat(UniformLaw{row}, row, count, random, scan, out);
}

// Samples the row of one target into its place: positions become the caller's numbers of the edges, and what is left of
// the room becomes -1.
template <typename index_t>
GOSSAMER_HOST_DEVICE void sample_row_into(const RowRequest<index_t>& from, int64_t target, int64_t room,
                                          int64_t* source, int64_t* edge) {
  const int64_t size = sample_row(from, target, edge);
  for (int64_t i = 0; i < room; ++i) {
    source[i] = i < size ? static_cast<int64_t>(from.col[edge[i]]) : -1;
    edge[i] = i < size ? (from.edge_ids ? from.edge_ids[edge[i]] : edge[i]) : -1;
  }
}

}  // namespace gossamer::sampling
