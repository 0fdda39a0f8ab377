// The best nodes of a seed by score, separately for every type of node.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <vector>

namespace gossamer::sampling {

struct ScoredNode {
  float score;
  int64_t node;
  bool operator<(const ScoredNode& other) const {
    return score > other.score || (score == other.score && node < other.node);
  }
};

// Where the results of one seed go: [num_types, top_k] nodes and scores, `stride` elements between two types.
struct TopOutput {
  int64_t* node;
  float* score;
  int64_t top_k;
  int64_t stride;
};

struct NoRescore {
  bool operator()(ScoredNode&) const { return false; }
};

// Writes the best of the nodes of one seed. Scores fall over many octaves, so that counting them by logarithm finds the
// best, nearly in order, without the mispredicted branches of a selection by comparisons.
class TopNodes {
 public:
  explicit TopNodes(std::vector<int64_t> type_end) : type_end_(std::move(type_end)) {}

  // Writes, for every type, the top_k nodes by score, largest first, equal scores by id, then -1 with score 0. The
  // nodes of type t have the ids [type_end[t - 1], type_end[t]); they are written as numbers within their type.
  //
  // Calls rescore(entry) for entries around place top_k of those of one type, from there outwards and at most kAround
  // to either side, until it says that it is enough: whether they belong to the best is what their scores leave open.
  template <typename Rescore>
  void write(std::vector<ScoredNode>& scored, const TopOutput& out, Rescore rescore) {
    ScoredNode* begin = scored.data();
    ScoredNode* const last = begin + scored.size();
    int64_t first = 0;
    for (size_t type = 0; type < type_end_.size(); ++type) {
      const auto is_ours = [&](const ScoredNode& entry) { return entry.node < type_end_[type]; };
      ScoredNode* const end = type + 1 == type_end_.size() ? last : std::partition(begin, last, is_ours);
      sort_best(begin, end, out.top_k + kAround);
      rescore_around(out.top_k, rescore);
      const int64_t count = std::min<int64_t>(out.top_k, std::ssize(best_));
      for (int64_t i = 0; i < out.top_k; ++i) {
        const int64_t place = static_cast<int64_t>(type) * out.stride + i;
        out.node[place] = i < count ? best_[i].node - first : -1;
        out.score[place] = i < count ? best_[i].score : 0;
      }
      begin = end;
      first = type_end_[type];
    }
  }

 private:
  static constexpr int64_t kAround = 20;
  static constexpr int kMantissaBits = 4, kBuckets = 64 << kMantissaBits;  // 64 octaves, up to 2

  // Larger scores have smaller buckets; what is beyond the octaves shares the last one at its end.
  static int bucket(float score) {
    constexpr int kTop = (128 << kMantissaBits) - 1;
    const int exponent = static_cast<int>(std::bit_cast<uint32_t>(std::max(score, 0.0f)) >> (23 - kMantissaBits));
    return std::clamp(kTop - exponent, 0, kBuckets - 1);
  }

  // best_ = the best `count` of the entries, or all if they are fewer, in order.
  void sort_best(const ScoredNode* begin, const ScoredNode* end, int64_t count) {
    count = std::min<int64_t>(count, end - begin);
    std::array<int64_t, kBuckets + 1> place{};  // of the next entry of a bucket; at last, where the bucket ends
    for (const ScoredNode* entry = begin; entry < end; ++entry) ++place[bucket(entry->score) + 1];
    int last = 0;
    for (; place[last] < count; ++last) place[last + 1] += place[last];
    best_.resize(place[last] + 1);  // what is not among the best goes to the last place, which is not kept
    for (const ScoredNode* entry = begin; entry < end; ++entry) {
      const int b = std::min(bucket(entry->score), last);
      best_[place[b]] = *entry;
      place[b] += b < last;
    }
    for (int64_t b = 0, first = 0; b < last; first = place[b++]) {
      const auto from = best_.begin() + first, to = best_.begin() + place[b];
      if (place[b] <= count) {
        std::sort(from, to);
      } else {
        std::partial_sort(from, best_.begin() + count, to);
      }
    }
    best_.resize(count);
  }

  template <typename Rescore>
  void rescore_around(int64_t top_k, Rescore& rescore) {
    const int64_t size = std::ssize(best_), first = std::max<int64_t>(top_k - kAround, 0);
    if (size <= top_k) return;
    for (int64_t i = 0; i < kAround; ++i) {
      const int64_t inside = top_k - 1 - i, outside = top_k + i;
      if (inside >= first && !rescore(best_[inside])) break;
      if (outside < size && !rescore(best_[outside])) break;
    }
    std::sort(best_.begin() + first, best_.end());
    std::inplace_merge(best_.begin(), best_.begin() + first, best_.end());
  }

  const std::vector<int64_t> type_end_;
  std::vector<ScoredNode> best_;
};

}  // namespace gossamer::sampling
