// The best nodes of a seed by score, separately for every type of node.
#pragma once

#include <algorithm>
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

// Calls rescore(entry) for entries around place top_k of those of one type, from there outwards and at most kAround to
// either side, until it says that it is enough. Whether they belong to the best is what their scores leave open.
template <typename Rescore>
void rescore_around(ScoredNode* begin, ScoredNode* end, int64_t top_k, Rescore& rescore) {
  constexpr int64_t kAround = 20;
  if (end - begin <= top_k) return;
  ScoredNode* const first = begin + std::max<int64_t>(top_k - kAround, 0);
  ScoredNode* const last = begin + std::min<int64_t>(top_k + kAround, end - begin);
  if (last < end) std::nth_element(begin, last, end);
  std::nth_element(begin, first, last);
  std::sort(first, last);
  for (int64_t i = 0; i < kAround; ++i) {
    ScoredNode *const inside = begin + top_k - 1 - i, *const outside = begin + top_k + i;
    if (inside >= first && !rescore(*inside)) return;
    if (outside < last && !rescore(*outside)) return;
  }
}

struct NoRescore {
  bool operator()(ScoredNode&) const { return false; }
};

// Writes, for every type, the top_k nodes by score, largest first, equal scores by id, then -1 with score 0. The nodes
// of type t have the ids [type_end[t - 1], type_end[t]); they are written as numbers within their type.
template <typename Rescore>
void write_top(std::vector<ScoredNode>& scored, const std::vector<int64_t>& type_end, const TopOutput& out,
               Rescore rescore) {
  ScoredNode* begin = scored.data();
  ScoredNode* const last = begin + scored.size();
  int64_t first = 0;
  for (size_t type = 0; type < type_end.size(); ++type) {
    const bool is_last = type + 1 == type_end.size();
    ScoredNode* const end =
        is_last ? last
                : std::partition(begin, last, [&](const ScoredNode& entry) { return entry.node < type_end[type]; });
    rescore_around(begin, end, out.top_k, rescore);
    const int64_t count = std::min<int64_t>(out.top_k, end - begin);
    std::nth_element(begin, begin + count, end);
    std::sort(begin, begin + count);
    for (int64_t i = 0; i < out.top_k; ++i) {
      const int64_t place = static_cast<int64_t>(type) * out.stride + i;
      out.node[place] = i < count ? begin[i].node - first : -1;
      out.score[place] = i < count ? begin[i].score : 0;
    }
    begin = end;
    first = type_end[type];
  }
}

}  // namespace gossamer::sampling
