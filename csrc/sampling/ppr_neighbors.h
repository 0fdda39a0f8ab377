// Personalised PageRank of one seed at a time by forward push (Andersen, Chung and Lang 2006, section 3), and its
// largest entries. A walk moves from a node to one of the sources of its row, each equally likely, and stops at every
// step with probability alpha; where there is no source to move to, it stops.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <memory>
#include <new>
#include <vector>

#include "sampling/top_nodes.h"

namespace gossamer::sampling {

// What a push reads and writes of every source: 8 bytes, so that those of 2^16 nodes fit a second-level cache.
struct PushState {
  float residual;   // a node whose residual has reached its threshold stands in the queue
  float threshold;  // eps * degree, below 0 once met by the seed at hand; 0 of nodes that no seed has met
};

// The invariant of the method: ppr(seed) = sum over nodes of estimate[u] * unit(u) + residual[u] * ppr(u).
template <typename index_t>
class ForwardPush {
 public:
  ForwardPush(const int64_t* rowptr, const index_t* col, const std::vector<int64_t>& type_end, double alpha, double eps,
              bool is_symmetric)
      : rowptr_(rowptr),
        col_(col),
        num_edges_(rowptr[type_end.back()]),
        alpha_(static_cast<float>(alpha)),
        eps_(eps),
        is_symmetric_(is_symmetric),
        // Zeroed by the system page by page, when a page is first met: a call with few seeds stays cheap.
        states_(zeros<PushState>(type_end.back())),
        estimates_(zeros<float>(type_end.back())),
        top_(type_end) {}

  void run(int64_t seed, const TopOutput& out) {
    num_pushed_ = num_met_ = num_queued_ = 0;
    make_room(1);
    add(seed, 1);
    for (int64_t head = 0; head < num_queued_; ++head) push(queue_[head]);
    rank();
    if (is_symmetric_) {
      top_.write(ranked_, out, [this](ScoredNode& entry) { return receive(entry); });
    } else {
      top_.write(ranked_, out, NoRescore{});
    }
    for (int64_t i = 0; i < num_met_; ++i) {
      PushState& state = states_.get()[met_[i]];
      state = {0, std::abs(state.threshold)};
      estimates_.get()[met_[i]] = 0;
    }
  }

 private:
  template <typename scalar_t>
  using Zeros = std::unique_ptr<scalar_t[], decltype(&std::free)>;

  template <typename scalar_t>
  static Zeros<scalar_t> zeros(int64_t size) {
    void* const memory = std::calloc(std::max<int64_t>(size, 1), sizeof(scalar_t));
    if (memory == nullptr) throw std::bad_alloc();
    return {static_cast<scalar_t*>(memory), &std::free};
  }

  // Free of branches that depend on the walks: whether a node is new, and whether it holds enough, are coin flips.
  void add(int64_t u, float amount) {
    PushState& state = states_.get()[u];
    if (state.threshold == 0) {
      const double degree = static_cast<double>(std::max<int64_t>(rowptr_[u + 1] - rowptr_[u], 1));
      state.threshold = std::max(static_cast<float>(eps_ * degree), std::numeric_limits<float>::min());
    }
    const float before = state.residual, threshold = std::abs(state.threshold);
    met_[num_met_] = u;
    num_met_ += state.threshold > 0;
    state = {before + amount, -threshold};
    queue_[num_queued_] = u;
    num_queued_ += (before < threshold) & (state.residual >= threshold);
  }

  // Of met_ and queue_, for so many nodes more.
  void make_room(int64_t size) {
    if (std::ssize(met_) < num_met_ + size) met_.resize(2 * (num_met_ + size));
    if (std::ssize(queue_) < num_queued_ + size) queue_.resize(2 * (num_queued_ + size));
  }

  void push(int64_t u) {
    constexpr int64_t kAhead = 8;
    PushState& state = states_.get()[u];
    const float residual = state.residual;
    const int64_t begin = rowptr_[u], end = rowptr_[u + 1];
    state.residual = 0;
    estimates_.get()[u] += begin == end ? residual : alpha_ * residual;
    const float share = (1 - alpha_) * residual / static_cast<float>(end - begin);
    if (share == 0) return;  // alpha rounds to 1
    num_pushed_ += end - begin;
    make_room(end - begin);
    for (int64_t e = begin; e < end; ++e) {
      if (e + kAhead < end) __builtin_prefetch(states_.get() + col_[e + kAhead], 1);
      add(col_[e], share);
    }
  }

  // Adds to every estimate a guess of what the walks at hand still bring: a part alpha stops where it is, the others,
  // if they walk on for long, anywhere in proportion to the degree. On undirected graphs the guess, like the truth,
  // lies between 0 and eps * degree, because no residual exceeds that.
  void rank() {
    double moving = 0;
    for (int64_t i = 0; i < num_met_; ++i) moving += states_.get()[met_[i]].residual;
    per_edge_ = static_cast<float>((1 - alpha_) * moving / static_cast<double>(std::max<int64_t>(num_edges_, 1)));
    ranked_.resize(num_met_);
    for (int64_t i = 0; i < num_met_; ++i) {
      const PushState& state = states_.get()[met_[i]];
      const float guess = alpha_ * state.residual + per_edge_ * degree(state);
      ranked_[i] = {estimates_.get()[met_[i]] + guess, met_[i]};
    }
  }

  // The guess of one node made better: its share of the residuals of its neighbours stops there with probability alpha
  // after one step. Every edge brings a neighbour's walks only where edges run both ways. False if that would cost more
  // than an eighth of the pushing.
  bool receive(ScoredNode& entry) {
    constexpr int64_t kAhead = 8, kShareOfPushes = 8;
    const int64_t begin = rowptr_[entry.node], end = rowptr_[entry.node + 1];
    num_pushed_ -= kShareOfPushes * (end - begin);
    if (num_pushed_ < 0) return false;
    float received = 0;
    for (int64_t e = begin; e < end; ++e) {
      if (e + kAhead < end) __builtin_prefetch(states_.get() + col_[e + kAhead]);
      const PushState& from = states_.get()[col_[e]];
      if (from.residual != 0) received += from.residual / -from.threshold;  // times eps: the residual per edge
    }
    received *= static_cast<float>(eps_) * alpha_ * (1 - alpha_);
    entry.score += received - alpha_ * per_edge_ * degree(states_.get()[entry.node]);
    return true;
  }

  // Of a node that was met, at least 1.
  float degree(const PushState& state) const { return -state.threshold / static_cast<float>(eps_); }

  const int64_t* const rowptr_;
  const index_t* const col_;
  const int64_t num_edges_;
  const float alpha_;
  const double eps_;
  const bool is_symmetric_;
  Zeros<PushState> states_;
  Zeros<float> estimates_;
  std::vector<int64_t> queue_, met_;
  int64_t num_queued_ = 0, num_met_ = 0, num_pushed_ = 0;  // nodes, nodes and edges, of the seed at hand
  float per_edge_ = 0;                                     // share of the walks that move on, of the seed at hand
  std::vector<ScoredNode> ranked_;
  TopNodes top_;
};

}  // namespace gossamer::sampling
