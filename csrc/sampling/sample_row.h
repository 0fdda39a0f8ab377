// One row of neighbour sampling without memory but that of its result: what a GPU thread does. The same draws, and so
// the same positions, as RowSampler (row_sampler.h), which remembers what it has chosen in a hash table.
#pragma once

#include <cstdint>
#include <type_traits>

#include "sampling/relation.h"

namespace gossamer::sampling {

// How rows are sampled. With `tree` each target belongs to a seed's tree with randomness, and perhaps a time, of its
// own.
struct RowRules {
  const int64_t* tree;       // [num_targets] or null
  const int64_t* seed_time;  // [num_trees] or null
  int64_t window;
  uint64_t seed, stream;
  bool replace;
  Temporal temporal;

  // Tree t draws from another seed.
  GOSSAMER_HOST_DEVICE static uint64_t tree_seed(uint64_t seed, int64_t t) {
    return mix_bits(seed + kGoldenRatio * static_cast<uint64_t>(t + 1));
  }

  GOSSAMER_HOST_DEVICE Random random(int64_t target_number, int64_t target) const {
    return Random(tree == nullptr ? seed : tree_seed(seed, tree[target_number]), stream, target);
  }

  GOSSAMER_HOST_DEVICE Row visible_row(const Relation& from, Row full, int64_t target_number) const {
    return seed_time == nullptr ? full : visible(from, full, seed_time[tree[target_number]], window);
  }
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

  GOSSAMER_HOST_DEVICE int64_t insert_or(int64_t offset, int64_t other) {
    const int64_t inserted = contains(offset) ? other : offset;
    ++size;
    return inserted;
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

// Writes the chosen positions of the row of one target to `out`, and returns their number, at most row_bound.
GOSSAMER_HOST_DEVICE inline int64_t sample_row(const Relation& from, const RowRules& rules, int64_t target_number,
                                               int64_t target, int64_t* out) {
  const Row full = from.rows.row(target), row = rules.visible_row(from, full, target_number);
  const int64_t count = row_bound(from.fanout, row.size(), rules.replace);
  if (count == 0) return 0;
  if (takes_all(from.fanout, row.size(), count, rules.replace) || rules.temporal == Temporal::kLast) {
    return take_last(from, row, count, out);
  }
  Random random = rules.random(target_number, target);
  ChosenList chosen{out, row.begin};
  const ScanAgain scan{chosen};
  return with_law(from, rules.temporal, row, full, [&](const auto& law) -> int64_t {
    if (rules.replace) return repeat(law, row, count, random, scan, out);
    if constexpr (std::is_same_v<std::remove_cvref_t<decltype(law)>, UniformLaw>) {
      return floyd(row, count, random, chosen, out);
    } else {
      return successive(law, row, count, random, chosen, scan, out);
    }
  });
}

// What one call asks for: the rows of all targets, each with its place in the result.
struct RowsJob {
  Relation from;
  RowRules rules;
  const int64_t* target;   // [num_targets]
  const int64_t* offsets;  // [num_targets + 1]
  int64_t* source;         // [offsets[num_targets]]
  int64_t* edge;           // the same

  // Room that the row of a target needs.
  GOSSAMER_HOST_DEVICE int64_t bound(int64_t i) const {
    const Row row = rules.visible_row(from, from.rows.row(target[i]), i);
    return row_bound(from.fanout, row.size(), rules.replace);
  }

  // Samples the row of a target into its place: positions become the caller's numbers of the edges, and what is left of
  // the room becomes -1.
  GOSSAMER_HOST_DEVICE void sample(int64_t i) const {
    int64_t *const sources = source + offsets[i], *const edges = edge + offsets[i];
    const int64_t size = sample_row(from, rules, i, target[i], edges), room = offsets[i + 1] - offsets[i];
    for (int64_t j = 0; j < room; ++j) {
      sources[j] = j < size ? from.col[edges[j]] : -1;
      edges[j] = j < size ? (from.edge_ids.given() ? from.edge_ids[edges[j]] : edges[j]) : -1;
    }
  }
};

}  // namespace gossamer::sampling
