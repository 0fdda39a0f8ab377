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

// Writes, for every type, the top_k nodes by score, largest first, equal scores by id, then -1 with score 0. The nodes
// of type t have the ids [type_end[t - 1], type_end[t]); they are written as numbers within their type.
inline void write_top(std::vector<ScoredNode>& scored, const std::vector<int64_t>& type_end, const TopOutput& out) {
  auto begin = scored.begin();
  int64_t first = 0;
  for (size_t type = 0; type < type_end.size(); ++type) {
    const bool is_last = type + 1 == type_end.size();
    const auto end = is_last ? scored.end() : std::partition(begin, scored.end(), [&](const ScoredNode& entry) {
      return entry.node < type_end[type];
    });
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
