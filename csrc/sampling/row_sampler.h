// Chooses edges of one row of a CSR graph by the laws of neighbour sampling, with the memory that makes it fast on a
// CPU: without torch and without memory of earlier rows.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#include <vector>

#include "common/random.h"
#include "sampling/laws.h"

namespace gossamer::sampling {

enum class Temporal { kUniform, kLast, kRecency };

// One edge type in CSR form. Everything but rowptr and col may be null.
struct Relation {
  const int64_t* rowptr = nullptr;
  const int32_t* col32 = nullptr;  // the columns: one of the two is set
  const int64_t* col64 = nullptr;
  const float* weight = nullptr;       // [num_edges] not negative
  const uint64_t* alias = nullptr;     // [num_edges] alias_table of the weights, where there are any
  const double* cumulative = nullptr;  // [num_edges] cumulative_weights, where there are weights and times
  const int64_t* time = nullptr;       // [num_edges] ascending within a row
  const int64_t* edge_ids = nullptr;   // [num_edges] the caller's numbers of the edges
  int64_t source_type = 0;
  int64_t target_type = 0;
  double fanout = 0;  // of this hop: a number of edges, -1 for all, or below 1 a share of the row

  int64_t source(int64_t position) const { return col32 ? col32[position] : col64[position]; }
};

// Number of leading elements of a sorted range that satisfy `holds`, without branches: each test is a coin flip.
template <typename scalar_t, typename Predicate>
int64_t bisect(const scalar_t* first, int64_t size, const Predicate& holds) {
  const scalar_t* const begin = first;
  for (; size > 1; size -= size / 2) first += holds(first[size / 2 - 1]) ? size / 2 : 0;
  return first - begin + (size > 0 && holds(*first));
}

// A set of at most `capacity` row offsets: open addressing in a table that is small enough to clear for every row. The
// offsets are random already, so they are their own hash.
class OffsetSet {
 public:
  void reset(int64_t capacity) {
    uint64_t size = 16;
    while (size < 2 * static_cast<uint64_t>(capacity)) size *= 2;
    if (table_.size() < size) table_.resize(size);
    mask_ = size - 1;
    std::memset(table_.data(), 0, size * sizeof(uint64_t));
  }

  // False if the offset was there already.
  bool insert(uint64_t offset) {
    uint64_t& entry = find(offset);
    if (entry != 0) return false;
    entry = offset + 1;
    return true;
  }

  bool contains(uint64_t offset) { return find(offset) != 0; }

 private:
  uint64_t& find(uint64_t offset) {
    uint64_t i = offset & mask_;
    while (table_[i] != 0 && table_[i] != offset + 1) i = (i + 1) & mask_;
    return table_[i];
  }

  std::vector<uint64_t> table_;
  uint64_t mask_ = 0;
};

// Part of a row in proportion to its weights, by bisection of their sums. `row_begin` is where the sums start.
struct CumulativeLaw {
  Row row;
  int64_t row_begin;
  const double* cumulative;
  const float* weights;
  double below() const { return row.begin > row_begin ? cumulative[row.begin - 1] : 0; }
  bool has_mass() const { return row.size() > 0 && cumulative[row.end - 1] > below(); }
  int64_t propose(Random& random) const {
    const double low = below();
    const double target = low + random.uniform() * (cumulative[row.end - 1] - low);
    const int64_t position =
        row.begin + bisect(cumulative + row.begin, row.size(), [&](double sum) { return sum <= target; });
    return position < row.end ? position : -1;  // rounding may have met the end of the sums
  }
  double weight(int64_t position) const { return weights[position]; }
};

// Another law times the rank of the edge among the row's, 1 for the oldest (Nguyen et al. 2018, linear bias).
template <typename Base>
struct RecencyLaw {
  Base base;
  bool has_mass() const { return base.has_mass(); }
  int64_t propose(Random& random) const {
    const int64_t position = base.propose(random);
    const int64_t bar = base.row.begin + static_cast<int64_t>(random.below(base.row.size()));
    return bar <= position ? position : -1;
  }
  double weight(int64_t position) const {
    return base.weight(position) * static_cast<double>(position - base.row.begin + 1);
  }
};

// Chooses positions of one row after the other; holds nothing but scratch memory.
class RowSampler {
 public:
  RowSampler(bool replace, Temporal temporal) : replace_(replace), temporal_(temporal) {}

  // The part of a row that a seed may see: the edges of [time - window, time]; a window of -1 has no beginning.
  static Row visible(const Relation& relation, Row row, int64_t time, int64_t window) {
    const int64_t* times = relation.time + row.begin;
    const bool all_past = row.size() == 0 || times[row.size() - 1] <= time;
    const int64_t end = all_past ? row.size() : bisect(times, row.size(), [&](int64_t t) { return t <= time; });
    const int64_t begin = window < 0 ? 0 : bisect(times, end, [&](int64_t t) { return t < time - window; });
    return {row.begin + begin, row.begin + end};
  }

  // Asks for the memory that sample() will read with the same arguments. Always inline: to GCC a function that only
  // prefetches has no effect, and calls of it vanish.
  [[gnu::always_inline]] void prefetch(const Relation& relation, Row row, bool whole, Random random) const {
    if (!relation.weight) return;
    const int64_t count = bound(relation, row);
    if (takes_all(relation.fanout, row.size(), count, replace_)) return __builtin_prefetch(relation.weight + row.begin);
    if (!whole) {
      __builtin_prefetch(relation.cumulative + row.end - 1);
      __builtin_prefetch(relation.cumulative + std::max(row.begin - 1, int64_t{0}));
      return __builtin_prefetch(relation.cumulative + row.begin + row.size() / 2);
    }
    for (int64_t i = 0; i < count; ++i) __builtin_prefetch(relation.alias + row.begin + random.below(row.size()));
  }

  // Room that sample() needs for a row.
  int64_t bound(const Relation& relation, Row row) const { return row_bound(relation.fanout, row.size(), replace_); }

  // Writes the chosen positions of the visible part `row` of a row `full`, and returns their number.
  int64_t sample(const Relation& relation, Row row, Row full, Random random, int64_t* out) {
    const int64_t count = bound(relation, row);
    if (count == 0) return 0;
    if (takes_all(relation.fanout, row.size(), count, replace_) || temporal_ == Temporal::kLast)
      return take_last(relation, row, count, out);
    if (!relation.weight) return sample_time(UniformLaw{row}, row, count, random, out);
    if (row.size() == full.size()) {
      return sample_time(AliasLaw{row, relation.alias, relation.weight}, row, count, random, out);
    }
    return sample_time(CumulativeLaw{row, full.begin, relation.cumulative, relation.weight}, row, count, random, out);
  }

 private:
  // The last `count` positions of positive weight, ascending.
  static int64_t take_last(const Relation& relation, Row row, int64_t count, int64_t* out) {
    int64_t size = 0;
    for (int64_t p = row.end - 1; p >= row.begin && size < count; --p) {
      if (!relation.weight || relation.weight[p] > 0) out[size++] = p;
    }
    std::reverse(out, out + size);
    return size;
  }

  template <typename Law>
  int64_t sample_time(const Law& law, Row row, int64_t count, Random& random, int64_t* out) {
    if (temporal_ == Temporal::kRecency) return draw(RecencyLaw<Law>{law}, row, count, random, out);
    return draw(law, row, count, random, out);
  }

  template <typename Law>
  int64_t draw(const Law& law, Row row, int64_t count, Random& random, int64_t* out) {
    const auto scan_row = [this](const Law& l, Row r, int64_t n, Random& g, int64_t* o) { return scan(l, r, n, g, o); };
    chosen_.reset(replace_ ? 0 : count);
    if (replace_) return repeat(law, row, count, random, scan_row, out);
    if constexpr (std::is_same_v<Law, UniformLaw>) return floyd(row, count, random, chosen_, out);
    return successive(law, row, count, random, chosen_, scan_row, out);
  }

  // Draws `count` positions outside chosen_ without replacement: those with the smallest exponential keys.
  template <typename Law>
  int64_t scan(const Law& law, Row row, int64_t count, Random& random, int64_t* out) {
    keys_.clear();
    for (int64_t p = row.begin; p < row.end; ++p) {
      const double weight = law.weight(p);
      if (weight > 0 && !chosen_.contains(p - row.begin)) keys_.emplace_back(scan_key(weight, random), p);
    }
    count = std::min<int64_t>(count, static_cast<int64_t>(keys_.size()));
    std::partial_sort(keys_.begin(), keys_.begin() + count, keys_.end());
    for (int64_t i = 0; i < count; ++i) out[i] = keys_[i].second;
    return count;
  }

  const bool replace_;
  const Temporal temporal_;
  OffsetSet chosen_;
  std::vector<std::pair<double, int64_t>> keys_;
};

}  // namespace gossamer::sampling
