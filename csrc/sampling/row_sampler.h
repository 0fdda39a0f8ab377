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
#include "sampling/relation.h"

namespace gossamer::sampling {

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

  int64_t insert_or(int64_t offset, int64_t other) {
    if (insert(offset)) return offset;
    insert(other);
    return other;
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

// The same for offsets below kCapacity, one bit each. Free of branches: in short rows, which are many, whether an
// offset was there is a coin flip.
class BitSet {
 public:
  static constexpr int64_t kCapacity = 256;

  bool insert(int64_t offset) {
    const bool is_new = !contains(offset);
    set(offset);
    return is_new;
  }

  int64_t insert_or(int64_t offset, int64_t other) {
    const int64_t inserted = contains(offset) ? other : offset;
    set(inserted);
    return inserted;
  }

  bool contains(int64_t offset) const { return words_[offset / 64] >> (offset % 64) & 1; }

 private:
  void set(int64_t offset) { words_[offset / 64] |= uint64_t{1} << (offset % 64); }

  uint64_t words_[kCapacity / 64] = {};
};

// A Random whose first numbers were made ahead, so that what they look up could be asked for.
class DrawsAhead {
 public:
  // Makes the first `count` numbers, and asks for the entries of a table that they name as numbers below n. No lambda
  // says what to ask for: see prepare().
  [[gnu::always_inline]] void make(uint64_t n, int64_t count, const Random& random, const uint32_t* table,
                                   int64_t step) {
    random_ = random;
    made_.resize(count);
    for (uint64_t& bits : made_) {
      bits = random_.next();
      __builtin_prefetch(table + Random::below_of(bits, n) * step);
    }
    next_ = made_.data();
    end_ = next_ + count;
  }

  uint64_t next() { return next_ == end_ ? random_.next() : *next_++; }
  uint64_t below(uint64_t n) { return Random::below_of(next(), n); }
  uint64_t below(uint64_t n, uint32_t* fraction) { return Random::below_of(next(), n, fraction); }
  double uniform() { return Random::uniform_of(next()); }

 private:
  std::vector<uint64_t> made_;
  const uint64_t *next_ = nullptr, *end_ = nullptr;
  Random random_{0, 0, 0};
};

// Chooses positions of one row after the other; holds nothing but scratch memory. Every row is prepared first, and
// sampled with the same arguments while at most kMostAhead others have been prepared after it.
class RowSampler {
 public:
  static constexpr int64_t kMostAhead = 7;

  RowSampler(bool replace, Temporal temporal) : replace_(replace), temporal_(temporal), ahead_(kMostAhead + 1) {}

  // Room for the rows of a block, and for the visible part of each; it holds what the last block left there.
  std::pair<Row*, Row*> room(int64_t num_rows) {
    if (std::ssize(full_) < num_rows) {
      full_.resize(num_rows);
      visible_.resize(num_rows);
    }
    return {full_.data(), visible_.data()};
  }

  // Asks for the memory that sample() will read. Always inline: to GCC a function that only prefetches has no effect,
  // and calls of it vanish.
  [[gnu::always_inline]] void prepare(int64_t number, const Relation& relation, Row row, Row full, Random random) {
    if (!relation.weight) return;
    const int64_t count = bound(relation, row);
    if (takes_all(relation.fanout, row.size(), count, replace_)) return __builtin_prefetch(relation.weight + row.begin);
    if (row.size() != full.size()) {
      __builtin_prefetch(relation.cumulative + row.end - 1);
      __builtin_prefetch(relation.cumulative + std::max(row.begin - 1, int64_t{0}));
      __builtin_prefetch(relation.cumulative + row.begin + row.size() / 2);
    }
    const AliasTable& alias = relation.alias;
    ahead_[number & kMostAhead].make(full.size(), count, random, alias.first + full.begin * alias.step, alias.step);
  }

  // Room that sample() needs for a row.
  int64_t bound(const Relation& relation, Row row) const { return row_bound(relation.fanout, row.size(), replace_); }

  // Writes the chosen positions of the visible part `row` of row `full` to `out`, and returns their number.
  int64_t sample(int64_t number, const Relation& relation, Row row, Row full, Random random, int64_t* out) {
    const int64_t count = bound(relation, row);
    if (count == 0) return 0;
    if (takes_all(relation.fanout, row.size(), count, replace_) || temporal_ == Temporal::kLast) {
      return take_last(relation, row, count, out);
    }
    return with_law(relation, temporal_, row, full, [&](const auto& law) {
      if (relation.weight != nullptr) return draw(law, row, count, ahead_[number & kMostAhead], out);
      return draw(law, row, count, random, out);
    });
  }

 private:
  template <typename Law, typename Draws>
  int64_t draw(const Law& law, Row row, int64_t count, Draws& draws, int64_t* out) {
    const auto scan_row = [this](const auto& l, Row r, int64_t n, auto& d, int64_t* o) { return scan(l, r, n, d, o); };
    if (replace_) {
      chosen_.reset(0);
      return repeat(law, row, count, draws, scan_row, out);
    }
    if constexpr (std::is_same_v<Law, UniformLaw>) {
      if (row.size() <= BitSet::kCapacity) {
        BitSet chosen;
        return floyd(row, count, draws, chosen, out);
      }
      chosen_.reset(count);
      return floyd(row, count, draws, chosen_, out);
    }
    chosen_.reset(count);
    return successive(law, row, count, draws, chosen_, scan_row, out);
  }

  // Draws `count` positions outside chosen_ without replacement: those with the smallest exponential keys.
  template <typename Law, typename Draws>
  int64_t scan(const Law& law, Row row, int64_t count, Draws& draws, int64_t* out) {
    keys_.clear();
    for (int64_t p = row.begin; p < row.end; ++p) {
      const double weight = law.weight(p);
      if (weight > 0 && !chosen_.contains(p - row.begin)) keys_.emplace_back(scan_key(weight, draws), p);
    }
    count = std::min<int64_t>(count, static_cast<int64_t>(keys_.size()));
    std::partial_sort(keys_.begin(), keys_.begin() + count, keys_.end());
    for (int64_t i = 0; i < count; ++i) out[i] = keys_[i].second;
    return count;
  }

  const bool replace_;
  const Temporal temporal_;
  std::vector<Row> full_, visible_;
  std::vector<DrawsAhead> ahead_;
  OffsetSet chosen_;
  std::vector<std::pair<double, int64_t>> keys_;
};

}  // namespace gossamer::sampling
