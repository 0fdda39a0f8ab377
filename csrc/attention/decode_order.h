// In which order decode_attention reads the leaves of a batch: leaves that several sequences share are read once.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <numeric>
#include <vector>

#include "attention/decode_plan.h"

namespace gossamer {

// Consecutive leaves whose rows the sequences order[begin, end) have at the same addresses.
struct Segment {
  int64_t begin, end;
  int64_t first_leaf;
  int64_t root, width;   // the outermost segment around: order[root, root + width) are decoded side by side
  int64_t number, cost;  // leaves, and leaves times sequences, of the line before the segment
  int64_t sequences() const { return end - begin; }
};

// The leaves of all sequences in one line: a share of the work is a range of units (segment, leaf, kv head). Sequences
// that begin with the same blocks of memory (a prompt in a paged cache, or a batch stride of 0) are a tree, whose
// inner nodes are segments of several sequences; the line is the tree in depth-first order.
class LeafIndex {
 public:
  std::vector<int64_t> order;                      // sequences, those that share leaves side by side
  std::vector<int64_t> first_leaf, num_leaves;     // [batch]: the leaves that any row of a sequence sees
  std::vector<int64_t> first_number, last_number;  // [batch]: where the leaves of a sequence begin and end in the line
  std::vector<Segment> segments;                   // ends with the end of the line

  explicit LeafIndex(const DecodeArgs& args)
      : order(args.batch),
        first_leaf(args.batch),
        num_leaves(args.batch),
        first_number(args.batch, -1),
        last_number(args.batch, -1),
        shared_(args.batch, 0),
        heads_(args.num_kv_heads) {
    for (int64_t b = 0; b < args.batch; ++b) {
      const int64_t end = args.last(b, args.rows() - 1);
      first_leaf[b] = std::min(args.first(b, 0), end) / kLeafKeys;
      num_leaves[b] = (end + kLeafKeys - 1) / kLeafKeys - first_leaf[b];
    }
    std::iota(order.begin(), order.end(), 0);
    if (args.batch > 1 && (args.block_table || (args.k.stride[0] == 0 && args.v.stride[0] == 0))) sort(args);
    for (int64_t i = 0; i < args.batch;) {
      int64_t end = i + 1;
      while (shared_[end - 1] > first_leaf[order[i]]) ++end;
      add(i, end, first_leaf[order[i]], i, end - i);
      i = end;
    }
    segments.push_back({args.batch, args.batch, 0, args.batch, 0, number_, cost_});
  }

  int64_t num_units() const { return number_ * heads_; }
  int64_t cost() const { return cost_ * heads_; }
  // The unit at which the line is cut to begin the given one of `shares` shares of equal cost.
  int64_t cut(int64_t share, int64_t shares) const {
    const int64_t target = share * cost() / shares;
    const auto behind = [](int64_t c, const Segment& s) { return c < s.cost; };
    const auto next = std::upper_bound(segments.begin() + 1, segments.end() - 1, target / heads_, behind);
    const Segment& segment = *(next - 1);
    const int64_t rest = target - segment.cost * heads_, sequences = std::max<int64_t>(segment.sequences(), 1);
    return std::min(segment.number * heads_ + (rest + sequences - 1) / sequences, next->number * heads_);
  }

 private:
  // Puts sequences with equal beginnings side by side, and counts what neighbours share.
  void sort(const DecodeArgs& args) {
    const auto blocks = [&](int64_t b) {
      const int64_t* row = args.block_table + b * args.max_blocks;
      const int64_t end = (args.last(b, args.rows() - 1) + args.block_size - 1) / args.block_size;
      return std::pair(row + std::min(args.first(b, 0) / args.block_size, end), row + end);
    };
    std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
      const int64_t first_a = args.first(a, 0), first_b = args.first(b, 0);
      if (first_a != first_b || args.block_table == nullptr) return first_a < first_b;
      const auto [begin_a, end_a] = blocks(a);
      const auto [begin_b, end_b] = blocks(b);
      return std::lexicographical_compare(begin_a, end_a, begin_b, end_b);
    });
    for (int64_t i = 0; i + 1 < args.batch; ++i) {
      const int64_t a = order[i], b = order[i + 1];
      if (args.first(a, 0) != args.first(b, 0)) continue;
      int64_t positions = std::min(args.last(a, args.rows() - 1), args.last(b, args.rows() - 1));
      if (args.block_table) {
        const auto [begin_a, end_a] = blocks(a);
        const auto [begin_b, end_b] = blocks(b);
        const int64_t* differs = std::mismatch(begin_a, end_a, begin_b, end_b).first;
        positions = std::min(positions, (differs - args.block_table - a * args.max_blocks) * args.block_size);
      }
      shared_[i] = positions / kLeafKeys;  // whole leaves alone
    }
  }

  // The segments of order[begin, end), which share all leaves before `leaf`.
  void add(int64_t begin, int64_t end, int64_t leaf, int64_t root, int64_t width) {
    const int64_t last = first_leaf[order[begin]] + num_leaves[order[begin]];
    int64_t common = begin + 1 == end ? last : *std::min_element(shared_.begin() + begin, shared_.begin() + end - 1);
    common = std::max(common, leaf);
    if (common > leaf) {
      segments.push_back({begin, end, leaf, root, width, number_, cost_});
      for (int64_t i = begin; i < end; ++i) {
        if (first_number[order[i]] < 0) first_number[order[i]] = number_;
        last_number[order[i]] = number_ + common - leaf;
      }
      number_ += common - leaf;
      cost_ += (common - leaf) * (end - begin);
    }
    if (begin + 1 == end) return;
    for (int64_t i = begin; i < end;) {
      int64_t next = i + 1;
      while (next < end && shared_[next - 1] > common) ++next;
      add(i, next, common, root, width);
      i = next;
    }
  }

  std::vector<int64_t> shared_;  // [batch]: order[i] and order[i + 1] share the leaves before this one
  int64_t heads_, number_ = 0, cost_ = 0;
};

// Where partial softmaxes of sequences that lie in several shares wait for the fold: per (leaf, kv head) the maxima,
// the sums and the unnormalised outputs of all rows. slot[sequence] is -1 where one share holds the whole sequence.
struct PartialStore {
  std::vector<int64_t> slot;  // [batch]: index of the sequence's first partial
  float* data = nullptr;
  float* at(const DecodeArgs& args, int64_t index) const { return data + index * args.partial_size(); }
};

}  // namespace gossamer
