// Personalised PageRank cut off after a few steps, by random walks (Fogaras et al. 2005), and its largest entries. A
// walk moves from a node to one of the sources of its row, each equally likely. It adds to every node that it visits
// the probability to stop there: alpha times that of having gone on until then, and all of it where there is no source.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "common/random.h"
#include "sampling/top_nodes.h"

namespace gossamer::sampling {

template <typename index_t>
class RandomWalks {
 public:
  RandomWalks(const int64_t* rowptr, const index_t* col, const std::vector<int64_t>& type_end, int64_t num_walks,
              int64_t num_steps, double alpha)
      : rowptr_(rowptr),
        col_(col),
        num_walks_(num_walks),
        num_steps_(num_steps),
        alpha_(alpha),
        at_(num_walks),
        // Zeroed by the system page by page, when a page is first met: a call with few seeds stays cheap.
        score_(static_cast<float*>(std::calloc(std::max<int64_t>(type_end.back(), 1), sizeof(float))), &std::free),
        top_(type_end) {
    if (!score_) throw std::bad_alloc();
  }

  // The walks of a node depend on (seed, node) alone: step t of walk w is draw w * num_steps + t.
  void run(uint64_t seed, int64_t node, const TopOutput& out) {
    at_.assign(num_walks_, node);
    const Random random(seed, 0, node);
    double moving = 1;  // probability that a walk has not stopped before
    add(node, static_cast<float>(rowptr_[node] == rowptr_[node + 1] ? 1 : alpha_));
    for (int64_t t = 0; t < num_steps_ && !at_.empty(); ++t) {
      moving *= 1 - alpha_;
      step(random, t, static_cast<float>(moving / static_cast<double>(num_walks_)));
    }
    scored_.clear();
    for (const int64_t u : met_) {
      scored_.push_back({score_.get()[u], u});
      score_.get()[u] = 0;
    }
    met_.clear();
    top_.write(scored_, out, NoRescore{});
  }

 private:
  static constexpr int64_t kAhead = 16;

  void add(int64_t u, float amount) {
    float& score = score_.get()[u];
    if (score == 0) met_.push_back(u);
    score += amount;
  }

  // All walks move; the reads of different walks overlap. -1 is a walk that has ended.
  void step(const Random& random, int64_t t, float moving) {
    const float stopping = static_cast<float>(alpha_) * moving;
    position_.resize(num_walks_);
    for (int64_t w = 0; w < num_walks_; ++w) {
      if (w + kAhead < num_walks_ && at_[w + kAhead] >= 0) __builtin_prefetch(rowptr_ + at_[w + kAhead]);
      const int64_t begin = at_[w] < 0 ? 0 : rowptr_[at_[w]], size = at_[w] < 0 ? 0 : rowptr_[at_[w] + 1] - begin;
      uint64_t low;
      const uint64_t draw = random.draw(static_cast<uint64_t>(w * num_steps_ + t));
      position_[w] = size == 0 ? -1 : begin + static_cast<int64_t>(multiply_high(draw, size, &low));
      if (size > 0) __builtin_prefetch(col_ + position_[w]);
    }
    for (int64_t w = 0; w < num_walks_; ++w) {
      at_[w] = position_[w] < 0 ? -1 : static_cast<int64_t>(col_[position_[w]]);
      if (at_[w] >= 0) __builtin_prefetch(rowptr_ + at_[w]);
      if (at_[w] >= 0) __builtin_prefetch(score_.get() + at_[w], 1);
    }
    for (const int64_t u : at_) {
      if (u >= 0) add(u, rowptr_[u] == rowptr_[u + 1] ? moving : stopping);
    }
  }

  const int64_t* const rowptr_;
  const index_t* const col_;
  const int64_t num_walks_, num_steps_;
  const double alpha_;
  std::vector<int64_t> at_, position_, met_;
  std::unique_ptr<float[], decltype(&std::free)> score_;
  std::vector<ScoredNode> scored_;
  TopNodes top_;
};

}  // namespace gossamer::sampling
