// One edge type of a graph, what a seed may see of its rows, and the laws that need more than weights: the same on CPU
// and GPU.
#pragma once

#include <cstdint>
#include <type_traits>

#include "sampling/laws.h"
#include "sampling/row_pointers.h"

namespace gossamer::sampling {

enum class Temporal { kUniform, kLast, kRecency };

// An integer per edge, in 32 or 64 bits, or none. Number p stands `step` places after number p - 1: what is read of one
// edge may stand side by side.
struct EdgeNumbers {
  const int32_t* narrow = nullptr;
  const int64_t* wide = nullptr;
  int64_t step = 1;

  GOSSAMER_HOST_DEVICE bool given() const { return narrow != nullptr || wide != nullptr; }

  GOSSAMER_HOST_DEVICE int64_t operator[](int64_t p) const {
    return narrow != nullptr ? static_cast<int64_t>(narrow[p * step]) : wide[p * step];
  }

  GOSSAMER_HOST_DEVICE const void* address(int64_t p) const {
    return narrow != nullptr ? static_cast<const void*>(narrow + p * step) : wide + p * step;
  }
};

// In CSR form. Everything but rows and columns may be null.
struct Relation {
  RowPointers rows;
  EdgeNumbers col;
  const float* weight = nullptr;       // [num_edges] not negative
  AliasTable alias;                    // of the weights, where there are any
  const double* cumulative = nullptr;  // [num_edges] cumulative_weights, where there are weights and times
  const int64_t* time = nullptr;       // [num_edges] ascending within a row
  EdgeNumbers edge_ids;                // the caller's numbers of the edges, where they are not the positions
  int64_t source_type = 0;
  int64_t target_type = 0;
  double fanout = 0;  // of this hop: a number of edges, -1 for all, or below 1 a share of the row
};

// Number of leading elements of a sorted range that satisfy `holds`, without branches: each test is a coin flip.
template <typename scalar_t, typename Predicate>
GOSSAMER_HOST_DEVICE int64_t bisect(const scalar_t* first, int64_t size, const Predicate& holds) {
  const scalar_t* const begin = first;
  for (; size > 1; size -= size / 2) first += holds(first[size / 2 - 1]) ? size / 2 : 0;
  return first - begin + (size > 0 && holds(*first));
}

// The part of a row that a seed may see: the edges of [time - window, time]; a window of -1 has no beginning. Edges
// without times are always seen.
GOSSAMER_HOST_DEVICE inline Row visible(const Relation& relation, Row row, int64_t time, int64_t window) {
  if (relation.time == nullptr) return row;
  const int64_t* times = relation.time + row.begin;
  const bool all_past = row.size() == 0 || times[row.size() - 1] <= time;
  const int64_t end = all_past ? row.size() : bisect(times, row.size(), [&](int64_t t) { return t <= time; });
  const bool is_limited = window >= 0 && time > INT64_MIN + window;
  const int64_t begin = is_limited ? bisect(times, end, [&](int64_t t) { return t < time - window; }) : 0;
  return {row.begin + begin, row.begin + end};
}

// Part of a row in proportion to its weights: the edge that the table of the whole row proposes if it lies in the part,
// else one found by bisection of the sums of the weights. Either way it has the probabilities of the part.
struct PartLaw {
  Row row;
  AliasLaw full;
  const double* cumulative;
  GOSSAMER_HOST_DEVICE double below() const { return row.begin > full.row.begin ? cumulative[row.begin - 1] : 0; }
  GOSSAMER_HOST_DEVICE bool has_mass() const { return row.size() > 0 && cumulative[row.end - 1] > below(); }
  template <typename Draws>
  GOSSAMER_HOST_DEVICE int64_t propose(Draws& draws) const {
    const int64_t proposed = full.propose(draws);
    if (row.begin <= proposed && proposed < row.end) return proposed;
    const double low = below();
    const double target = low + draws.uniform() * (cumulative[row.end - 1] - low);
    const int64_t position =
        row.begin + bisect(cumulative + row.begin, row.size(), [&](double sum) { return sum <= target; });
    return position < row.end ? position : -1;  // rounding may have met the end of the sums
  }
  GOSSAMER_HOST_DEVICE double weight(int64_t position) const { return full.weight(position); }
};

// Another law times the rank of the edge among the row's, 1 for the oldest (Nguyen et al. 2018, linear bias).
template <typename Base>
struct RecencyLaw {
  Base base;
  GOSSAMER_HOST_DEVICE bool has_mass() const { return base.has_mass(); }
  template <typename Draws>
  GOSSAMER_HOST_DEVICE int64_t propose(Draws& draws) const {
    const int64_t position = base.propose(draws);
    const int64_t bar = base.row.begin + static_cast<int64_t>(draws.below(base.row.size()));
    return bar <= position ? position : -1;
  }
  GOSSAMER_HOST_DEVICE double weight(int64_t position) const {
    return base.weight(position) * static_cast<double>(position - base.row.begin + 1);
  }
};

// The last `count` positions of positive weight, ascending.
GOSSAMER_HOST_DEVICE inline int64_t take_last(const Relation& relation, Row row, int64_t count, int64_t* out) {
  if (relation.weight == nullptr) {
    const int64_t all = count < row.size() ? count : row.size();
    for (int64_t i = 0; i < all; ++i) out[i] = row.end - all + i;
    return all;
  }
  int64_t size = 0;
  for (int64_t p = row.end - 1; p >= row.begin && size < count; --p) {
    if (relation.weight[p] > 0) out[size++] = p;
  }
  for (int64_t i = 0; i < size / 2; ++i) {
    const int64_t later = out[i];
    out[i] = out[size - 1 - i];
    out[size - 1 - i] = later;
  }
  return size;
}

// Calls draw(law) with the law of the visible part `row` of a row `full`.
template <typename Draw>
GOSSAMER_HOST_DEVICE int64_t with_law(const Relation& relation, Temporal temporal, Row row, Row full,
                                      const Draw& draw) {
  const auto with_time = [&](const auto& law) -> int64_t {
    using Law = std::remove_cvref_t<decltype(law)>;
    return temporal == Temporal::kRecency ? draw(RecencyLaw<Law>{law}) : draw(law);
  };
  if (relation.weight == nullptr) return with_time(UniformLaw{row});
  const AliasLaw whole{full, relation.alias, relation.weight};
  if (row.size() == full.size()) return with_time(whole);
  return with_time(PartLaw{row, whole, relation.cumulative});
}

}  // namespace gossamer::sampling
